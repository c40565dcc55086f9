// fused_experts on CUDA: which kernels run, in which order, in which memory. Contract: moe/fused_experts.h.
//
// Forward, 4 launches (6 where permute takes three): permute | up product, activation in its epilogue | down product |
// combine. Few rows need no sort: 3 launches. Backward, 7 at most without biases: routing restored | (up product again,
// when no pre-activation was kept) | gradient through the activation | two weight gradients | input gradient by rows |
// its sum over k, with the routing weights' gradient.
#pragma once

#include "cuda/device.h"
#include "cuda/grouped_gemm/product.h"
#include "moe/fused_experts.h"

namespace moe::cuda {

// What the choice of kernels depends on beside the problem.
struct ExpertsOptions {
  Device device;
  bool allow_tf32;
  bool deterministic;
};

struct FusedExpertsLaunch {
  FusedExpertsParams params;  // problem.row_to_slot is not read
  ExpertsOptions options;
  const void* topk_ids;  // [T,K] contiguous
  bool ids_are_int64;
  int32_t* expert_offsets;  // written
  int32_t* slot_to_row;     // written
};

int64_t fused_experts_workspace_bytes(const FusedExpertsLaunch& launch);
Outcome fused_experts(const FusedExpertsLaunch& launch, void* workspace, Stream stream);

struct FusedExpertsBackwardLaunch {
  FusedExpertsBackwardParams params;  // problem.row_to_slot is not read
  ExpertsOptions options;
};

int64_t fused_experts_backward_workspace_bytes(const FusedExpertsBackwardLaunch& launch);
Outcome fused_experts_backward(const FusedExpertsBackwardLaunch& launch, void* workspace, Stream stream);

}  // namespace moe::cuda
