// The arguments of fused_experts_int8, checked, and its result, allocated.
#pragma once

#include <optional>
#include <string>

#include "moe/fused_experts_int8.h"
#include "moe/permute.h"
#include "torch/arguments/fused_experts.h"
#include "torch/arguments/permute.h"

namespace moe::torch_ops {

// Holds every tensor that params points into. row_to_slot, slot_to_row and expert_offsets are filled by the
// permutation.
struct FusedExpertsInt8Arguments {
  Checks checks{"fused_experts_int8"};
  FusedExpertsInt8Params params = {};
  Tensor x, topk_weights, w_gate_up_scale, w_down_scale, y;
  std::optional<PermuteArguments> routing;

  FusedExpertsInt8Arguments(const Tensor& given_x, const Tensor& w_gate_up, const Tensor& gate_up_scale,
                            const Tensor& w_down, const Tensor& down_scale, const Tensor& given_weights,
                            const Tensor& topk_ids, const std::optional<Tensor>& b_gate_up,
                            const std::optional<Tensor>& b_down, const std::string& activation, double alpha,
                            double limit, bool interleaved, const std::string& apply_weights)
      : x(given_x) {
    FusedExpertsInt8Params& p = params;
    checks.has_dims(x, "x", 2, "[T, H]");
    p.dtype = checks.data_dtype(x, "x");
    checks.check(p.dtype != DType::kFloat64, "x must be Float, BFloat16 or Half, got Double");
    x = with_unit_inner_stride(x);
    p.x = x.const_data_ptr();
    p.x_stride = x.stride(0);
    p.num_tokens = x.size(0);
    p.hidden_size = x.size(1);
    checks.has_dims(w_down, "w_down", 3, "[E, H, I]");
    p.num_experts = w_down.size(0);
    p.intermediate_size = w_down.size(2);
    p.activation = {activation_named(checks, activation), alpha, limit};
    p.interleaved = interleaved;
    p.weights_on_input = checks.choice(apply_weights, "apply_weights", {"output", "input"}) == 1;
    const int64_t gate_up_size = (is_gated(p.activation.kind) ? 2 : 1) * p.intermediate_size;
    p.w_gate_up = weight(w_gate_up, "w_gate_up", gate_up_size, "G", p.hidden_size, "H");
    p.w_down = weight(w_down, "w_down", p.hidden_size, "H", p.intermediate_size, "I");
    w_gate_up_scale = scale(gate_up_scale, "w_gate_up_scale", gate_up_size, "G");
    w_down_scale = scale(down_scale, "w_down_scale", p.hidden_size, "H");
    p.w_gate_up.scales = Checks::data<float>(w_gate_up_scale);
    p.w_down.scales = Checks::data<float>(w_down_scale);
    p.b_gate_up = bias(b_gate_up, "b_gate_up", gate_up_size, "G");
    p.b_down = bias(b_down, "b_down", p.hidden_size, "H");

    routing.emplace(checks, topk_ids, p.num_experts, std::nullopt, "token");
    checks.has_size(topk_ids, "topk_ids", 0, p.num_tokens, "T");
    p.top_k = topk_ids.size(1);
    topk_weights = checks.routing_weights(given_weights, "topk_weights", p.dtype, p.num_tokens, p.top_k);
    p.topk_weights = Checks::data<float>(topk_weights);
    p.expert_offsets = routing->params.expert_offsets;
    p.row_to_slot = routing->params.row_to_slot;
    p.slot_to_row = routing->params.slot_to_row;
    y = empty_like(x, {p.num_tokens, p.hidden_size}, x.scalar_type());
    p.y = y.mutable_data_ptr();
  }

 private:
  Int8Weight weight(const Tensor& given, const char* name, int64_t channels, const char* channels_name, int64_t k,
                    const char* k_name) const {
    checks.has_dims(given, name, 3, "[E, channels, inputs]");
    checks.has_dtype(given, name, ScalarType::Char);
    checks.has_size(given, name, 0, params.num_experts, "E");
    checks.has_size(given, name, 1, channels, channels_name);
    checks.has_size(given, name, 2, k, k_name);
    checks.check(k <= 1 || given.stride(2) == 1, name, " must be contiguous along its last dimension");
    checks.check(k <= kInt8LongestSum, name, " must have at most ", kInt8LongestSum, " inputs, got ", k);
    return {Checks::data<int8_t>(given), given.stride(0), given.stride(1), nullptr};
  }

  Tensor scale(const Tensor& given, const char* name, int64_t channels, const char* channels_name) const {
    checks.has_dims(given, name, 2, "[E, channels]");
    checks.has_dtype(given, name, ScalarType::Float);
    checks.has_size(given, name, 0, params.num_experts, "E");
    checks.has_size(given, name, 1, channels, channels_name);
    return torch::stable::contiguous(given);
  }

  ExpertVector bias(const std::optional<Tensor>& given, const char* name, int64_t channels,
                    const char* channels_name) const {
    if (!given) return {nullptr, 0, 0};
    checks.has_dims(*given, name, 2, "[E, channels]");
    checks.has_dtype(*given, name, x.scalar_type());
    checks.has_size(*given, name, 0, params.num_experts, "E");
    checks.has_size(*given, name, 1, channels, channels_name);
    return {given->const_data_ptr(), given->stride(0), given->stride(1)};
  }
};

}  // namespace moe::torch_ops
