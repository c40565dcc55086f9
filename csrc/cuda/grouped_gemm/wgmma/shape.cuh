// What the blocks of all products have in common: 128 x kBlockN sums, stages of 64 along the reduction.
#pragma once

#include "cuda/grouped_gemm/wgmma/operands.cuh"
#include "cuda/grouped_gemm/wgmma/ring.cuh"
#include "cuda/policy/gemm_plan.h"

namespace moe::cuda::wgmma {

constexpr int kCapability = 90;  // no other has wgmma
constexpr int kBlockM = kConsumers * kBox;

// As many as fit into 227 KiB beside the slices.
template <int kBlockN>
constexpr int kStages = kBlockN == 256 ? 3 : 5;

// Sums leave through shared memory, 64 rows x 64 tile columns at a time.
constexpr int kSliceColumns = 64;
constexpr int kSliceStride = kSliceColumns + 8;  // floats; four rows of fragments fall into different banks

template <int kBlockN>
struct SharedMemory {
  alignas(kPatternBytes) uint8_t left[kStages<kBlockN>][kBlockM / kBox * kBoxBytes];
  alignas(kPatternBytes) uint8_t right[kStages<kBlockN>][kBlockN / kBox * kBoxBytes];
  alignas(16) float slices[kConsumers][kBox * kSliceStride];
  RingBarriers<kStages<kBlockN>> barriers;
};

template <int kBlockN>
bool is_plan(const GemmPlan& plan) {
  static_assert(sizeof(SharedMemory<kBlockN>) == wgmma_shared_bytes(kBlockM, kBlockN, kStages<kBlockN>));
  return plan == GemmPlan{Family::kWgmma, kBlockM, kBlockN, kBox, kStages<kBlockN>};
}

__device__ inline int32_t num_steps(int32_t size) { return size / kBox + (size % kBox != 0); }

}  // namespace moe::cuda::wgmma
