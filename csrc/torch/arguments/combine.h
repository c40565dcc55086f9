// The arguments of combine, combine_backward and segment_sum, checked, and their results, allocated.
#pragma once

#include "moe/combine.h"
#include "torch/checks.h"

namespace moe::torch_ops {

struct CombineArguments {
  CombineParams params = {};
  Tensor rows, weights, slots, y;

  CombineArguments(const Checks& checks, const Tensor& given_rows, const Tensor& topk_weights,
                   const Tensor& slot_to_row) {
    CombineParams& p = params;
    checks.has_dims(given_rows, "rows", 2, "[R, H]");
    p.dtype = checks.data_dtype(given_rows, "rows");
    rows = with_unit_inner_stride(given_rows);
    slots = checks.indices(slot_to_row, "slot_to_row", 2, "[T, K]");
    p.num_tokens = slots.size(0);
    p.top_k = slots.size(1);
    p.hidden_size = rows.size(1);
    weights = checks.routing_weights(topk_weights, "topk_weights", p.dtype, p.num_tokens, p.top_k);
    y = empty_like(rows, {p.num_tokens, p.hidden_size}, rows.scalar_type());
    p.rows = rows.const_data_ptr();
    p.rows_stride = rows.stride(0);
    p.topk_weights = weights.const_data_ptr();
    p.slot_to_row = Checks::data<int32_t>(slots);
    p.out = y.mutable_data_ptr();
    p.out_stride = p.hidden_size;
  }
};

struct CombineBackwardArguments {
  CombineBackwardParams params = {};
  Tensor grad_y, rows, weights, slots, grad_rows, grad_weights;

  CombineBackwardArguments(const Checks& checks, const Tensor& given_grad_y, const Tensor& given_rows,
                           const Tensor& topk_weights, const Tensor& slot_to_row) {
    CombineBackwardParams& p = params;
    checks.has_dims(given_grad_y, "grad_y", 2, "[T, H]");
    checks.has_dims(given_rows, "rows", 2, "[R, H]");
    p.dtype = checks.data_dtype(given_rows, "rows");
    checks.has_dtype(given_grad_y, "grad_y", given_rows.scalar_type());
    grad_y = with_unit_inner_stride(given_grad_y);
    rows = with_unit_inner_stride(given_rows);
    slots = checks.indices(slot_to_row, "slot_to_row", 2, "[T, K]");
    p.num_tokens = slots.size(0);
    p.top_k = slots.size(1);
    p.hidden_size = rows.size(1);
    checks.has_size(grad_y, "grad_y", 0, p.num_tokens, "T");
    checks.has_size(grad_y, "grad_y", 1, p.hidden_size, "H");
    weights = checks.routing_weights(topk_weights, "topk_weights", p.dtype, p.num_tokens, p.top_k);
    grad_rows = empty_like(rows, {num_rows(), p.hidden_size}, rows.scalar_type());
    grad_weights = empty_like(rows, {p.num_tokens, p.top_k}, weights_dtype(p.dtype));
    p.grad_y = grad_y.const_data_ptr();
    p.grad_y_stride = grad_y.stride(0);
    p.rows = rows.const_data_ptr();
    p.rows_stride = rows.stride(0);
    p.topk_weights = weights.const_data_ptr();
    p.slot_to_row = Checks::data<int32_t>(slots);
    p.grad_rows = grad_rows.mutable_data_ptr();
    p.grad_topk_weights = grad_weights.mutable_data_ptr();
  }

  int64_t num_rows() const { return rows.size(0); }
};

struct SegmentSumArguments {
  SegmentSumParams params = {};
  Tensor rows, offsets, out;

  SegmentSumArguments(const Checks& checks, const Tensor& given_rows, const Tensor& expert_offsets) {
    SegmentSumParams& p = params;
    checks.has_dims(given_rows, "rows", 2, "[R, N]");
    p.dtype = checks.data_dtype(given_rows, "rows");
    rows = with_unit_inner_stride(given_rows);
    offsets = checks.indices(expert_offsets, "expert_offsets", 1, "[E + 1]");
    checks.check(offsets.numel() >= 1, "expert_offsets must be [E + 1], got no values");
    p.num_experts = offsets.numel() - 1;
    p.width = rows.size(1);
    out = empty_like(rows, {p.num_experts, p.width}, rows.scalar_type());
    p.rows = rows.const_data_ptr();
    p.rows_stride = rows.stride(0);
    p.expert_offsets = Checks::data<int32_t>(offsets);
    p.out = out.mutable_data_ptr();
  }
};

}  // namespace moe::torch_ops
