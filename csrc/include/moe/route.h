// route: router_logits [T,E] -> topk_weights [T,K], topk_ids [T,K]. Fused score, selection and weights.
//
// score -> (+ bias, for selection only) -> (groups) -> top-k, larger first, ties to the lower index -> weights of
// the unbiased score -> (renormalise) -> scale. Arithmetic is float32 (float64 for float64 logits).
// NaN ranks above +inf. See docs/design.md for what non-finite logits do.
#pragma once

#include "moe/types.h"

namespace moe {

enum class Score : int32_t { kSoftmax, kSigmoid, kSqrtSoftplus, kNone };
enum class GroupFill : int32_t { kMinusInfinity, kZero };
enum class NonFinite : int32_t { kPropagate, kSanitize, kError };

// How a row of logits becomes weights; forward and backward agree on it.
struct RouteRule {
  Score score;
  bool softmax_after;  // select on raw logits, softmax over the selected ones (score must be kSoftmax)
  bool renormalize;
  double eps;
  double scale;
  NonFinite nonfinite;
};

// Sums over the tokens for auxiliary losses; null: not wanted. A token that chose nobody (a row of nothing but -inf,
// sanitized) adds nothing.
struct RouteStatistics {
  void* score_sums;        // [E], float (double for float64 logits): scores that sum to 1 in each row. Softmax over all
                           // experts, before or after the selection; other scores divided by their sum. Not for kNone
  int32_t* expert_counts;  // [E]: how often an expert was chosen
  void* z_sum;             // [1], float (double for float64 logits): the squares of logsumexp(logits). With kSanitize
                           // a row whose square is not finite adds nothing
};

struct RouteParams {
  RouteRule rule;
  DType dtype;  // of logits
  int64_t num_tokens;
  int64_t num_experts;
  int64_t top_k;
  const void* logits;  // [T,E], unit stride over experts
  int64_t logits_stride;
  const float* bias;   // [E] or null
  int64_t num_groups;  // 1: no groups
  int64_t topk_groups;
  int64_t group_top;  // a group's score is the sum of its best group_top values
  GroupFill group_fill;
  void* topk_weights;  // [T,K] contiguous, float (double for float64 logits)
  int32_t* topk_ids;   // [T,K] contiguous
  RouteStatistics statistics;
};

struct RouteBackwardParams {
  RouteRule rule;
  DType dtype;  // of logits and grad_logits
  int64_t num_tokens;
  int64_t num_experts;
  int64_t top_k;
  const void* logits;
  int64_t logits_stride;
  const int32_t* topk_ids;      // [T,K] contiguous; ids outside [0,E) get no gradient, a row of them is one of zeros
  const void* grad_weights;     // [T,K] contiguous, float (double for float64 logits)
  const void* grad_score_sums;  // [E] and [1], float (double for float64 logits): gradients of the statistics; null:
  const void* grad_z_sum;       // none. The forward's sums themselves are not needed
  void* grad_logits;            // [T,E] contiguous
};

}  // namespace moe
