// fused_experts_int8: fused_experts with weights in int8, for inference.
//
//   w[n,k]  = q[n,k] * scale[n]              a scale per output channel, |q| <= 127 (-128 is legal, quantising never
//                                            gives it)
//   x[t,k] ~= q[t,k] * scale[t]              quantised here, a scale per token: largest magnitude / 127, values
//                                            rounded to the nearest, ties to even
//   z       = (float(sum q q) * row scale) * channel scale + b       the sum is exact in int32
//   a       = activation(z) in float32, quantised the same way, a scale per row
//   rows    = likewise from a                                        rounded to the data's dtype
//   y[t]    = sum over k of topk_weights[t,k] * rows, in float32, rounded once
//
// A row whose scale would be below the smallest normal float32 counts as zeros. One that holds a NaN or an infinity
// has the scale NaN: all that is made of it is NaN.
//
// Sums are exact and nothing else depends on their order: every instruction set gives the same bits.
#pragma once

#include "moe/activation.h"
#include "moe/fused_experts.h"
#include "moe/types.h"

namespace moe {

// The longest sum of products of int8 that int32 holds whatever the values are: 2^17 * 128 * 127 < 2^31.
constexpr int64_t kInt8LongestSum = int64_t{1} << 17;

// A weight [E,N,K] with unit stride over K, and its scales [E,N] contiguous.
struct Int8Weight {
  const int8_t* data;
  int64_t expert_stride, n_stride;
  const float* scales;
};

struct FusedExpertsInt8Params {
  DType dtype;  // of x, biases and y: not float64
  int64_t num_tokens, hidden_size, intermediate_size, num_experts, top_k;
  ActivationRule activation;
  bool interleaved;  // gate and up channels alternate; else gate comes first
  bool weights_on_input;
  const void* x;  // [T,H], unit stride over H
  int64_t x_stride;
  Int8Weight w_gate_up;       // [E,G,H]
  Int8Weight w_down;          // [E,H,I]
  ExpertVector b_gate_up;     // [G]
  ExpertVector b_down;        // [H]
  const float* topk_weights;  // [T,K] contiguous
  const int32_t* expert_offsets;
  const int32_t* row_to_slot;
  const int32_t* slot_to_row;
  void* y;  // [T,H] contiguous
};

}  // namespace moe
