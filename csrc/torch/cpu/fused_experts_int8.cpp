// fused_experts_int8 and quantize_int8 for CPU tensors. Contract: moe/fused_experts_int8.h and schema.cpp.
#include "cpu/int8/fused_experts_int8.h"

#include <torch/csrc/stable/library.h>

#include <optional>
#include <string>
#include <tuple>

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

std::tuple<Tensor, Tensor> quantize_int8(const Tensor& given) {
  const Checks checks("quantize_int8");
  checks.has_dims(given, "weight", 3, "[E, N, K]");
  const DType dtype = checks.data_dtype(given, "weight");
  checks.check(dtype != DType::kFloat64, "weight must be Float, BFloat16 or Half, got Double");
  const Tensor weight = with_unit_inner_stride(given);
  const int64_t experts = weight.size(0), channels = weight.size(1), k = weight.size(2);
  Tensor values = empty_like(weight, {experts, channels, k}, ScalarType::Char);
  Tensor scales = empty_like(weight, {experts, channels}, ScalarType::Float);
  ask_for_huge_pages(values);
  auto* to = static_cast<int8_t*>(values.mutable_data_ptr());
  auto* scale = static_cast<float*>(scales.mutable_data_ptr());
  const auto* from = static_cast<const char*>(weight.const_data_ptr());
  for (int64_t e = 0; e < experts; ++e) {
    cpu::quantize_int8({.dtype = dtype,
                        .source = from + e * weight.stride(0) * size_of(dtype),
                        .source_stride = weight.stride(1),
                        .columns = k,
                        .rows = to + e * channels * k,
                        .row_stride = k,
                        .scales = scale + e * channels},
                       channels, torch_threads());
  }
  return {values, scales};
}

}  // namespace

}  // namespace moe::torch_ops

STABLE_TORCH_LIBRARY_IMPL(moe_ext, CPU, m) {
  m.impl("quantize_int8", TORCH_BOX(&moe::torch_ops::quantize_int8));
  m.impl("fused_experts_int8", TORCH_BOX(&moe::torch_ops::fused_experts_int8));
}
