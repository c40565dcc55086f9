// The arguments of permute, gather_rows and gather_rows_backward, checked, and their results, allocated.
#pragma once

#include <optional>
#include <string>

#include "moe/combine.h"
#include "moe/permute.h"
#include "torch/checks.h"

namespace moe::torch_ops {

// Holds every tensor that params points into.
struct PermuteArguments {
  PermuteParams params = {};
  Tensor ids, expert_offsets, row_to_slot, slot_to_row;

  PermuteArguments(const Checks& checks, const Tensor& topk_ids, int64_t num_experts,
                   const std::optional<int64_t>& capacity, const std::string& drop_order) {
    PermuteParams& p = params;
    checks.has_dims(topk_ids, "topk_ids", 2, "[T, K]");
    const ScalarType dtype = topk_ids.scalar_type();
    checks.check(dtype == ScalarType::Int || dtype == ScalarType::Long, "topk_ids must be Int or Long, got ", dtype);
    checks.check(num_experts >= 1 && num_experts < INT32_MAX, "num_experts must be 1 .. 2^31 - 2, got ", num_experts);
    ids = torch::stable::contiguous(topk_ids);
    p.num_tokens = ids.size(0);
    p.top_k = ids.size(1);
    p.num_experts = num_experts;
    const int64_t num_rows = ids.numel();
    checks.check(num_rows < INT32_MAX, "topk_ids must have fewer than 2^31 - 1 slots, got ", shape_text(ids));
    p.topk_ids = ids.const_data_ptr();
    p.ids_are_int64 = dtype == ScalarType::Long;
    checks.check(!capacity || *capacity >= 0, "capacity must be at least 0, got ", capacity.value_or(0));
    p.capacity = capacity.value_or(-1);
    p.drop_order = static_cast<DropOrder>(checks.choice(drop_order, "drop_order", {"token", "choice"}));
    expert_offsets = empty_like(ids, {num_experts + 1}, ScalarType::Int);
    row_to_slot = empty_like(ids, {num_rows}, ScalarType::Int);
    slot_to_row = empty_like(ids, {p.num_tokens, p.top_k}, ScalarType::Int);
    p.expert_offsets = static_cast<int32_t*>(expert_offsets.mutable_data_ptr());
    p.row_to_slot = static_cast<int32_t*>(row_to_slot.mutable_data_ptr());
    p.slot_to_row = static_cast<int32_t*>(slot_to_row.mutable_data_ptr());
  }
};

// params.num_valid is left for the backend, which may not be able to read expert_offsets.
struct GatherRowsArguments {
  GatherRowsParams params = {};
  Tensor x, slots, offsets, rows;

  GatherRowsArguments(const Checks& checks, const Tensor& given_x, const Tensor& row_to_slot,
                      const Tensor& expert_offsets, int64_t top_k) {
    checks.has_dims(given_x, "x", 2, "[T, H]");
    checks.check(top_k >= 1, "top_k must be at least 1, got ", top_k);
    slots = checks.indices(row_to_slot, "row_to_slot", 1, "[R]");
    offsets = checks.indices(expert_offsets, "expert_offsets", 1, "[E + 1]");
    checks.check(offsets.numel() >= 1, "expert_offsets must be [E + 1], got no values");
    checks.check(given_x.size(0) <= INT64_MAX / top_k, "top_k is too large: ", top_k);
    x = with_unit_inner_stride(given_x);
    const int64_t element_size = static_cast<int64_t>(x.element_size());
    rows = empty_like(x, {slots.numel(), x.size(1)}, x.scalar_type());
    params.num_rows = slots.numel();
    params.top_k = top_k;
    params.row_bytes = x.size(1) * element_size;
    params.x = x.const_data_ptr();
    params.x_stride_bytes = x.stride(0) * element_size;
    params.row_to_slot = Checks::data<int32_t>(slots);
    params.rows = rows.mutable_data_ptr();
  }

  int64_t num_slots() const { return x.size(0) * params.top_k; }
};

// The sum over a token's rows, which is combine with weights of one.
struct GatherRowsBackwardArguments {
  CombineParams params = {};
  Tensor rows, slots, grad_x;

  GatherRowsBackwardArguments(const Checks& checks, const Tensor& grad_rows, const Tensor& slot_to_row) {
    checks.has_dims(grad_rows, "grad_rows", 2, "[R, H]");
    params.dtype = checks.data_dtype(grad_rows, "grad_rows");
    rows = with_unit_inner_stride(grad_rows);
    slots = checks.indices(slot_to_row, "slot_to_row", 2, "[T, K]");
    params.num_tokens = slots.size(0);
    params.top_k = slots.size(1);
    params.hidden_size = rows.size(1);
    grad_x = empty_like(rows, {params.num_tokens, params.hidden_size}, rows.scalar_type());
    params.rows = rows.const_data_ptr();
    params.rows_stride = rows.stride(0);
    params.slot_to_row = Checks::data<int32_t>(slots);
    params.out = grad_x.mutable_data_ptr();
    params.out_stride = params.hidden_size;
  }
};

}  // namespace moe::torch_ops
