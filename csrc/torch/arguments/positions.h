// The arguments of slot_positions and expert_histogram, checked, and their results, allocated.
#pragma once

#include <optional>
#include <string>

#include "moe/positions.h"
#include "torch/checks.h"

namespace moe::torch_ops {

// Holds every tensor that params points into.
struct SlotPositionsArguments {
  SlotPositionsParams params = {};
  Tensor ids, counts;
  std::optional<Tensor> priority, positions;

  // For the counts alone.
  SlotPositionsArguments(const Checks& checks, const Tensor& topk_ids, int64_t num_experts,
                         const std::optional<int64_t>& group_size) {
    SlotPositionsParams& p = params;
    checks.has_dims(topk_ids, "topk_ids", 2, "[T, K]");
    const ScalarType dtype = topk_ids.scalar_type();
    checks.check(dtype == ScalarType::Int || dtype == ScalarType::Long, "topk_ids must be Int or Long, got ", dtype);
    checks.check(num_experts >= 1 && num_experts < INT32_MAX, "num_experts must be 1 .. 2^31 - 2, got ", num_experts);
    checks.check(!group_size || *group_size >= 1, "group_size must be at least 1, got ", group_size.value_or(0));
    ids = torch::stable::contiguous(topk_ids);
    p.num_tokens = ids.size(0);
    p.top_k = ids.size(1);
    p.num_experts = num_experts;
    checks.check(ids.numel() < INT32_MAX, "topk_ids must have fewer than 2^31 - 1 slots, got ", shape_text(ids));
    p.topk_ids = ids.const_data_ptr();
    p.ids_are_int64 = dtype == ScalarType::Long;
    p.group_size = group_size ? *group_size : std::max<int64_t>(p.num_tokens, 1);
    p.num_groups = !group_size ? 1 : p.num_tokens == 0 ? 0 : (p.num_tokens - 1) / *group_size + 1;
    counts = empty_like(ids, {p.num_groups, num_experts}, ScalarType::Int);
    p.counts = static_cast<int32_t*>(counts.mutable_data_ptr());
  }

  SlotPositionsArguments(const Checks& checks, const Tensor& topk_ids, int64_t num_experts, const std::string& order,
                         const std::optional<Tensor>& given_priority, const std::optional<int64_t>& group_size)
      : SlotPositionsArguments(checks, topk_ids, num_experts, group_size) {
    SlotPositionsParams& p = params;
    p.drop_order = static_cast<DropOrder>(checks.choice(order, "order", {"token", "choice"}));
    if (given_priority) {
      const Tensor& values = *given_priority;
      const bool of_slots = values.dim() == 2;
      checks.has_dims(values, "priority", of_slots ? 2 : 1, "[T] or [T, K]");
      checks.has_dtype(values, "priority", ScalarType::Float);
      checks.has_size(values, "priority", 0, p.num_tokens, "T");
      if (of_slots) checks.has_size(values, "priority", 1, p.top_k, "K");
      priority = torch::stable::contiguous(values);
      p.priority = Checks::data<float>(*priority);
      p.priority_of_slots = of_slots;
    }
    positions = empty_like(ids, {p.num_tokens, p.top_k}, ScalarType::Int);
    p.positions = static_cast<int32_t*>(positions->mutable_data_ptr());
  }
};

}  // namespace moe::torch_ops
