// soft_mix: a product with the weights of a softmax (Soft MoE), and its gradients, without the weights in memory.
//
//   mixed[b,r] = sum over k of w(b,r,k) values[b,k]          w(b,r,k) = exp(l(b,r,k) - max[b,r]) * scale[b,r]
//
// With `dispatch` a softmax over the tokens: r is a slot, k a token, l(b,r,k) = logits[b,k,r]. Without (combine) one
// over the slots: r is a token, k a slot, l(b,r,k) = logits[b,r,k]. R and N below are the numbers of these r and k.
//
// Tokens that token_mask leaves out have weights of zero: in dispatch no slot sees them, in combine their results are
// zero. A sequence without tokens gives zeros. Values of tokens that are left out are multiplied by zero, so they must
// be finite, and so must the gradients of what was left out; their logits may be anything.
//
// max and scale = 1 / sum over k of exp(l - max) go over what is not left out, in float (double for double data). What
// is not finite goes the way of torch.softmax: a NaN, a +inf, or -inf alone make all of w(b,r,:) NaN. Where nothing is
// summed max and scale are zero.
//
// Weights are rounded to the dtype of values for the product, sums are float (double for double data).
#pragma once

#include "moe/types.h"

namespace moe {

struct SoftMixParams {
  DType dtype;         // of values and mixed
  DType logits_dtype;  // kFloat64 if dtype is, and else not
  bool dispatch;
  int64_t batch;       // B
  int64_t num_tokens;  // m
  int64_t num_slots;   // s
  int64_t width;       // D
  const void* values;  // [B,N,D], unit stride over D
  int64_t values_batch_stride;
  int64_t values_stride;
  const void* logits;  // [B,m,s], unit stride over s
  int64_t logits_batch_stride;
  int64_t logits_stride;
  const uint8_t* token_mask;  // [B,m] contiguous, 0 for tokens to leave out; or null
  void* mixed;                // [B,R,D] contiguous
  void* statistics;           // [2,B,R] contiguous: max, scale; float (double for double data)

  int64_t num_results() const { return dispatch ? num_slots : num_tokens; }  // R
  int64_t num_values() const { return dispatch ? num_tokens : num_slots; }   // N
};

//   grad_values[b,k]   = sum over r of w(b,r,k) grad_mixed[b,r]
//   grad_l(b,r,k) = w(b,r,k) (<grad_mixed[b,r], values[b,k]> - <grad_mixed[b,r], mixed[b,r]>)
//
// with mixed as it was rounded. Of tokens that are left out both are zero. Either may be null.
struct SoftMixBackwardParams {
  SoftMixParams forward;   // mixed and statistics as soft_mix gave them, here read
  const void* grad_mixed;  // [B,R,D] in dtype, unit stride over D
  int64_t grad_mixed_batch_stride;
  int64_t grad_mixed_stride;
  void* grad_values;  // [B,N,D] contiguous in dtype
  void* grad_logits;  // [B,m,s] contiguous in logits_dtype
};

}  // namespace moe
