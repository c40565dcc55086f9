// route and route_backward for CPU tensors. Contract: moe/route.h and schema.cpp.
#include "cpu/route/route.h"

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "torch/checks.h"

namespace moe::torch_ops {

namespace {

RouteRule route_rule(const Checks& checks, const std::string& score, bool softmax_after, bool renormalize, double eps,
                     double scale, const std::string& nonfinite) {
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
Tensor checked_logits(const Checks& checks, const Tensor& router_logits) {
  checks.has_dims(router_logits, "router_logits", 2, "[T, E]");
  const int64_t num_experts = router_logits.size(1);
  checks.check(num_experts >= 1 && num_experts < INT32_MAX, "router_logits must have 1 .. 2^31 - 2 experts, got ",
               shape_text(router_logits));
  return with_unit_inner_stride(router_logits);
}

std::tuple<Tensor, Tensor> route(const Tensor& router_logits, int64_t top_k, std::string score, bool softmax_after,
                                 std::optional<Tensor> bias, int64_t num_groups, int64_t topk_groups, int64_t group_top,
                                 std::string group_fill, bool renormalize, double eps, double scale,
                                 std::string nonfinite) {
  const Checks checks("route");
  RouteParams p = {};
  p.dtype = checks.data_dtype(router_logits, "router_logits");
  const Tensor logits = checked_logits(checks, router_logits);
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

  std::optional<Tensor> bias_values;
  if (bias.has_value()) {
    checks.has_dims(*bias, "bias", 1, "[E]");
    checks.has_size(*bias, "bias", 0, p.num_experts, "E");
    checks.has_dtype(*bias, "bias", ScalarType::Float);
    bias_values = torch::stable::contiguous(*bias);
    p.bias = Checks::data<float>(*bias_values);
  }
  p.logits = logits.const_data_ptr();
  p.logits_stride = logits.stride(0);
  Tensor topk_weights = empty_like(logits, {p.num_tokens, top_k}, weights_dtype(p.dtype));
  Tensor topk_ids = empty_like(logits, {p.num_tokens, top_k}, ScalarType::Int);
  p.topk_weights = topk_weights.mutable_data_ptr();
  p.topk_ids = static_cast<int32_t*>(topk_ids.mutable_data_ptr());

  int64_t bad_token = -1;
  const Status status = cpu::route_forward(p, torch_threads(), &bad_token);
  if (bad_token >= 0) fail("router_logits: row ", bad_token, " holds NaN, +inf or nothing but -inf");
  checks.is_ok(status);
  return {topk_weights, topk_ids};
}

Tensor route_backward(const Tensor& grad_weights, const Tensor& router_logits, const Tensor& topk_ids,
                      std::string score, bool softmax_after, bool renormalize, double eps, double scale,
                      std::string nonfinite) {
  const Checks checks("route_backward");
  RouteBackwardParams p = {};
  p.dtype = checks.data_dtype(router_logits, "router_logits");
  const Tensor logits = checked_logits(checks, router_logits);
  p.rule = route_rule(checks, score, softmax_after, renormalize, eps, scale, nonfinite);
  const Tensor ids = checks.indices(topk_ids, "topk_ids", 2, "[T, K]");
  p.num_tokens = logits.size(0);
  p.num_experts = logits.size(1);
  p.top_k = ids.size(1);
  checks.has_size(ids, "topk_ids", 0, p.num_tokens, "T");
  checks.check(p.top_k >= 1, "topk_ids must have at least one column, got ", shape_text(ids));
  const Tensor grad = checks.routing_weights(grad_weights, "grad_weights", p.dtype, p.num_tokens, p.top_k);

  Tensor grad_logits = empty_like(logits, {p.num_tokens, p.num_experts}, logits.scalar_type());
  p.logits = logits.const_data_ptr();
  p.logits_stride = logits.stride(0);
  p.topk_ids = Checks::data<int32_t>(ids);
  p.grad_weights = grad.const_data_ptr();
  p.grad_logits = grad_logits.mutable_data_ptr();
  checks.is_ok(cpu::route_backward(p, torch_threads()));
  return grad_logits;
}

}  // namespace

}  // namespace moe::torch_ops

STABLE_TORCH_LIBRARY_IMPL(moe_ext, CPU, m) {
  m.impl("route", TORCH_BOX(&moe::torch_ops::route));
  m.impl("route_backward", TORCH_BOX(&moe::torch_ops::route_backward));
}
