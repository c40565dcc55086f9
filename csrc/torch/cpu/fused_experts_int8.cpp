// fused_experts_int8 for CPU tensors. Contract: moe/fused_experts_int8.h and schema.cpp.
#include "cpu/int8/fused_experts_int8.h"

#include <torch/csrc/stable/library.h>

#include <optional>
#include <string>

#include "cpu/permute/permute.h"
#include "torch/arguments/fused_experts_int8.h"
#include "torch/cpu/huge_pages.h"
#include "torch/cpu/threads.h"

namespace moe::torch_ops {

namespace {

Tensor fused_experts_int8(const Tensor& x, const Tensor& w_gate_up, const Tensor& w_gate_up_scale, const Tensor& w_down,
                          const Tensor& w_down_scale, const Tensor& topk_weights, const Tensor& topk_ids,
                          const std::optional<Tensor>& b_gate_up, const std::optional<Tensor>& b_down,
                          const std::string& activation, double alpha, double limit, bool interleaved,
                          const std::string& apply_weights) {
  FusedExpertsInt8Arguments a(x, w_gate_up, w_gate_up_scale, w_down, w_down_scale, topk_weights, topk_ids, b_gate_up,
                              b_down, activation, alpha, limit, interleaved, apply_weights);
  const cpu::Parallel parallel = torch_threads();
  a.checks.is_ok(cpu::permute(a.routing->params, parallel));
  ask_for_huge_pages(a.y);
  a.checks.is_ok(cpu::fused_experts_int8(a.params, parallel));
  return a.y;
}

}  // namespace

}  // namespace moe::torch_ops

STABLE_TORCH_LIBRARY_IMPL(moe_ext, CPU, m) {
  m.impl("fused_experts_int8", TORCH_BOX(&moe::torch_ops::fused_experts_int8));
}
