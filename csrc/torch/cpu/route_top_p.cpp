// route_top_p for CPU tensors. Contract: moe/top_p.h and schema.cpp.
#include "cpu/route/top_p.h"

#include <torch/csrc/stable/library.h>

#include <string>
#include <tuple>

#include "torch/arguments/route_top_p.h"
#include "torch/cpu/huge_pages.h"
#include "torch/cpu/threads.h"

namespace moe::torch_ops {

namespace {

std::tuple<Tensor, Tensor> route_top_p(const Tensor& router_logits, double p, int64_t max_k, std::string score,
                                       bool renormalize, double eps, double scale, std::string nonfinite) {
  const Checks checks("route_top_p");
  RouteTopPArguments a(checks, router_logits, p, max_k, score, renormalize, eps, scale, nonfinite);
  ask_for_huge_pages(a.route.topk_weights);
  ask_for_huge_pages(a.route.topk_ids);
  int64_t bad_token = -1;
  const Status status = cpu::route_top_p(a.route.params, a.params, torch_threads(), &bad_token);
  if (bad_token >= 0) fail("router_logits: row ", bad_token, " holds NaN, +inf or nothing but -inf");
  checks.is_ok(status);
  return {a.route.topk_weights, a.route.topk_ids};
}

}  // namespace

}  // namespace moe::torch_ops

STABLE_TORCH_LIBRARY_IMPL(moe_ext, CPU, m) { m.impl("route_top_p", TORCH_BOX(&moe::torch_ops::route_top_p)); }
