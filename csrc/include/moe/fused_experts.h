// fused_experts: the whole way of the data through the experts, after permute.
//
//   z = x W_gate_up^T + b   (gathers its rows)      [R,G]   kept for backward on request
//   a = activation(z)       (in the same epilogue)  [R,I]   transient
//   rows = a W_down^T + b                           [R,H]   transient, in column slabs
//   y[t] = sum over k of topk_weights[t,k] * rows   [T,H]
//
// With weights_on_input the weight multiplies x instead, and rows are summed as they are.
//
// z can be kept as MXFP8 (OCP Microscaling Formats 1.0): each row is G bytes of e4m3 in the columns' own order, then
// one byte of e8m0 (a power of two, bias 127) for every 32 columns of the activation, those of the gate before those of
// up: G + parts * ceil(I / 32) bytes, parts being 2 when gated. The scale is 2^(floor(log2(largest)) - 8), so the
// largest value of its 32 stands between 256 and 512 (saturating at 448); 1 where all are zero. A NaN or infinity in z
// stays e4m3's NaN.
#pragma once

#include "moe/activation.h"
#include "moe/grouped_gemm.h"
#include "moe/types.h"

namespace moe {

constexpr int64_t kMxfp8Columns = 32;

// Scales of one part of a row, and bytes of a row, that is kept as MXFP8.
constexpr int64_t mxfp8_scales(int64_t intermediate_size) {
  return (intermediate_size + kMxfp8Columns - 1) / kMxfp8Columns;
}
constexpr int64_t mxfp8_row_bytes(int64_t intermediate_size, bool gated) {
  return (gated ? 2 : 1) * (intermediate_size + mxfp8_scales(intermediate_size));
}

// A bias per expert, through strides in elements; data may be null.
struct ExpertVector {
  const void* data;
  int64_t expert_stride, stride;
};

// What forward and backward agree on.
struct FusedExpertsProblem {
  DType dtype;
  int64_t num_tokens, hidden_size, intermediate_size, num_experts, top_k;
  int64_t num_rows;  // R: at most T*K, at least the slots that name an expert
  ActivationRule activation;
  bool interleaved;  // gate and up columns alternate; else gate comes first
  bool weights_on_input;
  bool preact_is_mxfp8;  // what is kept of z; else it has the data's dtype
  const void* x;         // [T,H], unit stride over H
  int64_t x_stride;
  ExpertMatrix w_gate_up;    // [G,H]
  ExpertMatrix w_down;       // [H,I]
  ExpertVector b_gate_up;    // [G]
  ExpertVector b_down;       // [H]
  const void* topk_weights;  // [T,K] contiguous, float (double for float64 data)
  const int32_t* expert_offsets;
  const int32_t* row_to_slot;
  const int32_t* slot_to_row;
  bool batch_invariant;  // on the CPU: what belongs to a row does not depend on its expert's other rows
  int64_t slab_columns;  // transient [R,H] buffers hold this many columns at a time
};

struct FusedExpertsParams {
  FusedExpertsProblem problem;
  void* preact;  // [R,G] contiguous (or rows of MXFP8), or null when it is not kept
  void* y;       // [T,H] contiguous
};

// Null outputs are not computed. Weight gradients have their own strides, with one of n and k contiguous.
struct FusedExpertsBackwardParams {
  FusedExpertsProblem problem;
  const void* preact;  // as forward kept it, or null: computed again
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
