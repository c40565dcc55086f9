// route_top_p for CUDA tensors. Contract: moe/top_p.h and schema.cpp.
#include <string>
#include <tuple>

#include "cuda/route/top_p.h"
#include "torch/arguments/route_top_p.h"
#include "torch/cuda/launching.h"

namespace moe::torch_ops {

namespace {

std::tuple<Tensor, Tensor> route_top_p(const Tensor& router_logits, double p, int64_t max_k, std::string score,
                                       bool renormalize, double eps, double scale, std::string nonfinite) {
  const Checks checks("route_top_p", kKernelPlace);
  const RouteTopPArguments a(checks, router_logits, p, max_k, score, renormalize, eps, scale, nonfinite);
  Launching launching(checks, a.route.logits);
  void* workspace = launching.workspace(cuda::route_top_p_workspace_bytes(a.route.params));
  launching.is_ok(cuda::route_top_p(a.route.params, a.params, workspace, launching.stream()), "router_logits ",
                  shape_text(a.route.logits), ", max_k ", max_k);
  return {a.route.topk_weights, a.route.topk_ids};
}

}  // namespace

}  // namespace moe::torch_ops

MOE_EXT_LIBRARY_IMPL(MOE_EXT_OPS, MOE_EXT_KERNEL_KEY, m) {
  m.impl("route_top_p", TORCH_BOX(&moe::torch_ops::route_top_p));
}
