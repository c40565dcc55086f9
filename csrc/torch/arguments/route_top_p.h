// The arguments of route_top_p, checked, and its results, allocated: those of route for the best max_k, and of the cut.
#pragma once

#include <limits>
#include <string>

#include "moe/top_p.h"
#include "torch/arguments/route.h"

namespace moe::torch_ops {

struct RouteTopPArguments {
  RouteArguments route;
  TopPParams params = {};

  RouteTopPArguments(const Checks& checks, const Tensor& router_logits, double p, int64_t max_k,
                     const std::string& score, bool renormalize, double eps, double scale, const std::string& nonfinite)
      : route(checks, router_logits, max_k, score, false, std::nullopt, 1, 1, 1, "-inf", false, eps, 1.0, nonfinite) {
    const Score rule = route.params.rule.score;
    checks.check(rule != Score::kNone, "score must be softmax, sigmoid or sqrtsoftplus, got none");
    checks.check(p >= 0, "p must be at least 0, got ", p);
    params.dtype = route.params.dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32;
    params.num_tokens = route.params.num_tokens;
    params.top_k = max_k;
    // All of a softmax, whatever its sum has been rounded to on the way.
    params.p = rule == Score::kSoftmax && p >= 1 ? std::numeric_limits<double>::infinity() : p;
    params.renormalize = renormalize;
    params.eps = eps;
    params.scale = scale;
    params.topk_weights = route.params.topk_weights;
    params.topk_ids = route.params.topk_ids;
  }
};

}  // namespace moe::torch_ops
