// route and its relatives for CUDA tensors. Contract: moe/route.h and schema.cpp.
#include "cuda/route/route.h"

#include <tuple>

#include "torch/arguments/route.h"
#include "torch/cuda/launching.h"

namespace moe::torch_ops {

namespace {

void run(const Checks& checks, const RouteArguments& a) {
  Launching launching(checks, a.logits);
  void* workspace = launching.workspace(cuda::route_forward_workspace_bytes(a.params));
  launching.is_ok(cuda::route_forward(a.params, workspace, launching.stream()), "router_logits ", shape_text(a.logits),
                  ", top_k ", a.params.top_k);
}

void run_backward(const Checks& checks, const RouteBackwardArguments& a) {
  const Launching launching(checks, a.logits);
  launching.is_ok(cuda::route_backward(a.params, launching.stream()), "router_logits ", shape_text(a.logits));
}

std::tuple<Tensor, Tensor> route(const Tensor& router_logits, int64_t top_k, std::string score, bool softmax_after,
                                 std::optional<Tensor> bias, int64_t num_groups, int64_t topk_groups, int64_t group_top,
                                 std::string group_fill, bool renormalize, double eps, double scale,
                                 std::string nonfinite) {
  const Checks checks("route", kKernelPlace);
  const RouteArguments a(checks, router_logits, top_k, score, softmax_after, bias, num_groups, topk_groups, group_top,
                         group_fill, renormalize, eps, scale, nonfinite);
  run(checks, a);
  return {a.topk_weights, a.topk_ids};
}

Tensor route_backward(const Tensor& grad_weights, const Tensor& router_logits, const Tensor& topk_ids,
                      std::string score, bool softmax_after, bool renormalize, double eps, double scale,
                      std::string nonfinite) {
  const Checks checks("route_backward", kKernelPlace);
  const RouteBackwardArguments a(checks, grad_weights, router_logits, topk_ids, score, softmax_after, renormalize, eps,
                                 scale, nonfinite);
  run_backward(checks, a);
  return a.grad_logits;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> route_with_statistics(
    const Tensor& router_logits, int64_t top_k, std::string score, bool softmax_after, std::optional<Tensor> bias,
    int64_t num_groups, int64_t topk_groups, int64_t group_top, std::string group_fill, bool renormalize, double eps,
    double scale, std::string nonfinite) {
  const Checks checks("route_with_statistics", kKernelPlace);
  RouteArguments a(checks, router_logits, top_k, score, softmax_after, bias, num_groups, topk_groups, group_top,
                   group_fill, renormalize, eps, scale, nonfinite);
  const StatisticsOutputs statistics(checks, a);
  run(checks, a);
  return {a.topk_weights, a.topk_ids, statistics.score_sums, statistics.expert_counts, statistics.z_sum};
}

Tensor route_with_statistics_backward(std::optional<Tensor> grad_weights, std::optional<Tensor> grad_score_sums,
                                      std::optional<Tensor> grad_z_sum, const Tensor& router_logits,
                                      const Tensor& topk_ids, std::string score, bool softmax_after, bool renormalize,
                                      double eps, double scale, std::string nonfinite) {
  const Checks checks("route_with_statistics_backward", kKernelPlace);
  const RouteBackwardArguments a(checks, grad_weights, router_logits, topk_ids, score, softmax_after, renormalize, eps,
                                 scale, nonfinite, grad_score_sums, grad_z_sum);
  run_backward(checks, a);
  return a.grad_logits;
}

}  // namespace

}  // namespace moe::torch_ops

MOE_EXT_LIBRARY_IMPL(MOE_EXT_OPS, MOE_EXT_KERNEL_KEY, m) {
  m.impl("route", TORCH_BOX(&moe::torch_ops::route));
  m.impl("route_backward", TORCH_BOX(&moe::torch_ops::route_backward));
  m.impl("route_with_statistics", TORCH_BOX(&moe::torch_ops::route_with_statistics));
  m.impl("route_with_statistics_backward", TORCH_BOX(&moe::torch_ops::route_with_statistics_backward));
}
