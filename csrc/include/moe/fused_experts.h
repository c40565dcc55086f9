// fused_experts: the whole way of the data through the experts, after permute.
//
//   z = x W_gate_up^T + b   (gathers its rows)      [R,G]   kept for backward on request
//   a = activation(z)       (in the same epilogue)  [R,I]   transient
//   rows = a W_down^T + b                           [R,H]   transient, in column slabs
//   y[t] = sum over k of topk_weights[t,k] * rows   [T,H]
//
// With weights_on_input the weight multiplies x instead, and rows are summed as they are.
#pragma once

#include "moe/activation.h"
#include "moe/grouped_gemm.h"
#include "moe/types.h"

namespace moe {

// A bias per expert, through strides in elements; data may be null.
struct ExpertVector {
  const void* data;
  int64_t expert_stride, stride;
};

// What forward and backward agree on.
struct FusedExpertsProblem {
  DType dtype;
  int64_t num_tokens, hidden_size, intermediate_size, num_experts, top_k;
  ActivationRule activation;
  bool interleaved;  // gate and up columns alternate; else gate comes first
  bool weights_on_input;
  const void* x;  // [T,H], unit stride over H
  int64_t x_stride;
  ExpertMatrix w_gate_up;    // [G,H]
  ExpertMatrix w_down;       // [H,I]
  ExpertVector b_gate_up;    // [G]
  ExpertVector b_down;       // [H]
  const void* topk_weights;  // [T,K] contiguous, float (double for float64 data)
  const int32_t* expert_offsets;
  const int32_t* row_to_slot;
  const int32_t* slot_to_row;
  int64_t slab_columns;  // transient [R,H] buffers hold this many columns at a time
};

struct FusedExpertsParams {
  FusedExpertsProblem problem;
  void* preact;  // [R,G] contiguous, or null when it is not kept
  void* y;       // [T,H] contiguous
};

// Null outputs are not computed. Weight gradients have their own strides, with one of n and k contiguous.
struct FusedExpertsBackwardParams {
  FusedExpertsProblem problem;
  const void* preact;  // [R,G], or null: computed again
  const void* grad_y;  // [T,H], unit stride over H
  int64_t grad_y_stride;
  void* grad_x;                 // [T,H] contiguous
  ExpertMatrix grad_w_gate_up;  // data is written
  ExpertMatrix grad_w_down;
  void* grad_b_gate_up;     // [E,G] contiguous
  void* grad_b_down;        // [E,H] contiguous
  void* grad_topk_weights;  // [T,K] contiguous, as topk_weights
};

}  // namespace moe
