// The arguments of route and route_backward, checked, and their results, allocated: the same for every backend.
#pragma once

#include <optional>
#include <string>

#include "moe/route.h"
#include "torch/checks.h"

namespace moe::torch_ops {

inline RouteRule route_rule(const Checks& checks, const std::string& score, bool softmax_after, bool renormalize,
                            double eps, double scale, const std::string& nonfinite) {
  RouteRule rule = {};
  rule.score = static_cast<Score>(checks.choice(score, "score", {"softmax", "sigmoid", "sqrtsoftplus", "none"}));
  rule.softmax_after = softmax_after;
  checks.check(!softmax_after || rule.score == Score::kSoftmax, "softmax_after needs score = softmax, got ", score);
  rule.renormalize = renormalize;
  rule.eps = eps;
  rule.scale = scale;
  rule.nonfinite = static_cast<NonFinite>(checks.choice(nonfinite, "nonfinite", {"propagate", "sanitize", "error"}));
  return rule;
}

// [T, E] of any row stride.
inline Tensor checked_logits(const Checks& checks, const Tensor& router_logits) {
  checks.has_dims(router_logits, "router_logits", 2, "[T, E]");
  const int64_t num_experts = router_logits.size(1);
  checks.check(num_experts >= 1 && num_experts < INT32_MAX, "router_logits must have 1 .. 2^31 - 2 experts, got ",
               shape_text(router_logits));
  return with_unit_inner_stride(router_logits);
}

// Holds every tensor that params points into.
struct RouteArguments {
  RouteParams params = {};
  Tensor logits, topk_weights, topk_ids;
  std::optional<Tensor> bias;

  RouteArguments(const Checks& checks, const Tensor& router_logits, int64_t top_k, const std::string& score,
                 bool softmax_after, const std::optional<Tensor>& given_bias, int64_t num_groups, int64_t topk_groups,
                 int64_t group_top, const std::string& group_fill, bool renormalize, double eps, double scale,
                 const std::string& nonfinite) {
    RouteParams& p = params;
    p.dtype = checks.data_dtype(router_logits, "router_logits");
    logits = checked_logits(checks, router_logits);
    p.rule = route_rule(checks, score, softmax_after, renormalize, eps, scale, nonfinite);
    p.num_tokens = logits.size(0);
    p.num_experts = logits.size(1);
    p.top_k = top_k;
    checks.check(top_k >= 1 && top_k <= p.num_experts, "top_k must be 1 .. ", p.num_experts, " (E), got ", top_k);

    p.num_groups = num_groups;
    p.topk_groups = topk_groups;
    p.group_top = group_top;
    p.group_fill = static_cast<GroupFill>(checks.choice(group_fill, "group_fill", {"-inf", "0"}));
    checks.check(num_groups >= 1 && p.num_experts % num_groups == 0, "num_groups must divide ", p.num_experts,
                 " (E), got ", num_groups);
    checks.check(topk_groups >= 1 && topk_groups <= num_groups, "topk_groups must be 1 .. ", num_groups,
                 " (num_groups), got ", topk_groups);
    checks.check(group_top >= 1, "group_top must be at least 1, got ", group_top);
    const int64_t reachable = topk_groups * (p.num_experts / num_groups);
    checks.check(num_groups == 1 || p.group_fill == GroupFill::kZero || top_k <= reachable, "top_k must be at most ",
                 reachable, ", the experts in topk_groups groups, got ", top_k);

    if (given_bias) {
      checks.has_dims(*given_bias, "bias", 1, "[E]");
      checks.has_size(*given_bias, "bias", 0, p.num_experts, "E");
      checks.has_dtype(*given_bias, "bias", ScalarType::Float);
      bias = torch::stable::contiguous(*given_bias);
      p.bias = Checks::data<float>(*bias);
    }
    p.logits = logits.const_data_ptr();
    p.logits_stride = logits.stride(0);
    topk_weights = empty_like(logits, {p.num_tokens, top_k}, weights_dtype(p.dtype));
    topk_ids = empty_like(logits, {p.num_tokens, top_k}, ScalarType::Int);
    p.topk_weights = topk_weights.mutable_data_ptr();
    p.topk_ids = static_cast<int32_t*>(topk_ids.mutable_data_ptr());
  }
};

// The sums over the tokens that route can make on its way.
struct StatisticsOutputs {
  Tensor score_sums, expert_counts, z_sum;

  StatisticsOutputs(const Checks& checks, RouteArguments& route) {
    RouteParams& p = route.params;
    checks.check(p.rule.score != Score::kNone, "score must be softmax, sigmoid or sqrtsoftplus, got none");
    score_sums = empty_like(route.logits, {p.num_experts}, weights_dtype(p.dtype));
    expert_counts = empty_like(route.logits, {p.num_experts}, ScalarType::Int);
    z_sum = empty_like(route.logits, {1}, weights_dtype(p.dtype));
    p.statistics = {score_sums.mutable_data_ptr(), static_cast<int32_t*>(expert_counts.mutable_data_ptr()),
                    z_sum.mutable_data_ptr()};
  }
};

struct RouteBackwardArguments {
  RouteBackwardParams params = {};
  Tensor logits, topk_ids, grad_weights, grad_logits;
  std::optional<Tensor> grad_score_sums, grad_z_sum;

  // Gradients that are not there count as zeros; only that of the weights is written out for it.
  RouteBackwardArguments(const Checks& checks, const std::optional<Tensor>& given_grad_weights,
                         const Tensor& router_logits, const Tensor& given_topk_ids, const std::string& score,
                         bool softmax_after, bool renormalize, double eps, double scale, const std::string& nonfinite,
                         const std::optional<Tensor>& given_grad_score_sums = std::nullopt,
                         const std::optional<Tensor>& given_grad_z_sum = std::nullopt) {
    RouteBackwardParams& p = params;
    p.dtype = checks.data_dtype(router_logits, "router_logits");
    logits = checked_logits(checks, router_logits);
    p.rule = route_rule(checks, score, softmax_after, renormalize, eps, scale, nonfinite);
    topk_ids = checks.indices(given_topk_ids, "topk_ids", 2, "[T, K]");
    p.num_tokens = logits.size(0);
    p.num_experts = logits.size(1);
    p.top_k = topk_ids.size(1);
    checks.has_size(topk_ids, "topk_ids", 0, p.num_tokens, "T");
    checks.check(p.top_k >= 1, "topk_ids must have at least one column, got ", shape_text(topk_ids));
    const ScalarType wide = weights_dtype(p.dtype);
    grad_weights = given_grad_weights
                       ? checks.routing_weights(*given_grad_weights, "grad_weights", p.dtype, p.num_tokens, p.top_k)
                       : torch::stable::new_zeros(logits, {p.num_tokens, p.top_k}, wide);
    if (given_grad_score_sums) {
      checks.has_dims(*given_grad_score_sums, "grad_score_sums", 1, "[E]");
      checks.has_size(*given_grad_score_sums, "grad_score_sums", 0, p.num_experts, "E");
      checks.has_dtype(*given_grad_score_sums, "grad_score_sums", wide);
      grad_score_sums = torch::stable::contiguous(*given_grad_score_sums);
      p.grad_score_sums = grad_score_sums->const_data_ptr();
    }
    if (given_grad_z_sum) {
      checks.has_dims(*given_grad_z_sum, "grad_z_sum", 1, "[1]");
      checks.has_size(*given_grad_z_sum, "grad_z_sum", 0, 1, "one value");
      checks.has_dtype(*given_grad_z_sum, "grad_z_sum", wide);
      grad_z_sum = torch::stable::contiguous(*given_grad_z_sum);
      p.grad_z_sum = grad_z_sum->const_data_ptr();
    }
    grad_logits = empty_like(logits, {p.num_tokens, p.num_experts}, logits.scalar_type());
    p.logits = logits.const_data_ptr();
    p.logits_stride = logits.stride(0);
    p.topk_ids = Checks::data<int32_t>(topk_ids);
    p.grad_weights = grad_weights.const_data_ptr();
    p.grad_logits = grad_logits.mutable_data_ptr();
  }
};

}  // namespace moe::torch_ops
