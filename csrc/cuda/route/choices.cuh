// What backward knows of the chosen experts of a row and of its statistics, and what their gradients come to. The
// formulas stand in csrc/cuda/route/backward.h.
#pragma once

#include "cuda/route/row.cuh"

namespace moe::cuda::routing {

// One chosen expert. An id outside [0, E) is none: it enters no sum.
template <class A>
struct Choice {
  bool valid;
  A z;
  A score;
  A grad;  // of the weight, times the scale
};

// Sums over the choices of a row.
template <class A>
struct ChoiceSums {
  A scores = 0;         // S
  A mean_gradient = 0;  // sum_j g_j s_j / S
  A inner_product = 0;  // sum_j dL/ds_j s_j, of softmax

  __device__ A score_gradient(const RouteRule& rule, const Choice<A>& choice) const {
    if (!choice.valid) return 0;
    return rule.renormalize ? (choice.grad - mean_gradient) / scores : choice.grad;
  }

  // What the choice adds to its entry of the row: the gradient of its score where softmax goes over all experts, else
  // that of its logit.
  __device__ A contribution(const RouteRule& rule, const Choice<A>& choice) const {
    if (!choice.valid) return 0;
    const A by_score = score_gradient(rule, choice);
    if (rule.score != Score::kSoftmax) return by_score * slope_of(rule.score, choice.z, choice.score);
    return rule.softmax_after ? choice.score * (by_score - inner_product) : by_score;
  }
};

// The gradients of the statistics for one row.
template <class A>
struct StatisticsGradient {
  A score_sum = 1;       // C
  A inner_product = 0;   // sum_j G_j p_j, or sum_j G_j s_j / C
  A by_probability = 0;  // 2 logsumexp(z) times the gradient of z_sum

  // Of a logit, for scores that look at one logit alone. Where all scores have underflowed, so have their slopes.
  __device__ A by_logit(Score score, A z, A s, A grad) const {
    return is_tiny(score_sum) ? A(0) : (grad - inner_product) / score_sum * slope_of(score, z, s);
  }
};

}  // namespace moe::cuda::routing
