// permute, gather_rows and gather_rows_backward for CPU tensors. Contract: moe/permute.h and schema.cpp.
#include "cpu/permute/permute.h"

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "cpu/combine/combine.h"
#include "torch/allocate.h"
#include "torch/checks.h"

namespace moe::torch_ops {

namespace {

std::tuple<Tensor, Tensor, Tensor> permute(const Tensor& topk_ids, int64_t num_experts) {
  const Checks checks("permute");
  checks.has_dims(topk_ids, "topk_ids", 2, "[T, K]");
  const ScalarType dtype = topk_ids.scalar_type();
  checks.check(dtype == ScalarType::Int || dtype == ScalarType::Long, "topk_ids must be Int or Long, got ", dtype);
  checks.check(num_experts >= 1 && num_experts < INT32_MAX, "num_experts must be 1 .. 2^31 - 2, got ", num_experts);
  const Tensor ids = torch::stable::contiguous(topk_ids);

  PermuteParams p = {};
  p.num_tokens = ids.size(0);
  p.top_k = ids.size(1);
  p.num_experts = num_experts;
  const int64_t num_rows = ids.numel();
  checks.check(num_rows < INT32_MAX, "topk_ids must have fewer than 2^31 - 1 slots, got ", shape_text(ids));
  p.topk_ids = ids.const_data_ptr();
  p.ids_are_int64 = dtype == ScalarType::Long;
  Tensor expert_offsets = empty_like(ids, {num_experts + 1}, ScalarType::Int);
  Tensor row_to_slot = empty_like(ids, {num_rows}, ScalarType::Int);
  Tensor slot_to_row = empty_like(ids, {p.num_tokens, p.top_k}, ScalarType::Int);
  p.expert_offsets = static_cast<int32_t*>(expert_offsets.mutable_data_ptr());
  p.row_to_slot = static_cast<int32_t*>(row_to_slot.mutable_data_ptr());
  p.slot_to_row = static_cast<int32_t*>(slot_to_row.mutable_data_ptr());
  checks.is_ok(cpu::permute(p, torch_threads()));
  return {expert_offsets, row_to_slot, slot_to_row};
}

Tensor gather_rows(const Tensor& x, const Tensor& row_to_slot, const Tensor& expert_offsets, int64_t top_k) {
  const Checks checks("gather_rows");
  checks.has_dims(x, "x", 2, "[T, H]");
  checks.check(top_k >= 1, "top_k must be at least 1, got ", top_k);
  const Tensor slots = checks.indices(row_to_slot, "row_to_slot", 1, "[R]");
  const Tensor offsets = checks.indices(expert_offsets, "expert_offsets", 1, "[E + 1]");
  const int64_t num_rows = slots.numel();
  checks.offsets_fit(offsets, "expert_offsets", num_rows);
  const int64_t num_valid = Checks::data<int32_t>(offsets)[offsets.numel() - 1];
  const int64_t num_tokens = x.size(0);
  checks.check(num_tokens <= INT64_MAX / top_k, "top_k is too large: ", top_k);
  checks.slots_exist(slots, "row_to_slot", num_valid, num_tokens * top_k);

  const Tensor source = with_unit_inner_stride(x);
  const int64_t element_size = static_cast<int64_t>(source.element_size());
  Tensor rows = allocate(source, {num_rows, source.size(1)}, source.scalar_type());
  GatherRowsParams p = {};
  p.num_rows = num_rows;
  p.num_valid = num_valid;
  p.top_k = top_k;
  p.row_bytes = source.size(1) * element_size;
  p.x = source.const_data_ptr();
  p.x_stride_bytes = source.stride(0) * element_size;
  p.row_to_slot = Checks::data<int32_t>(slots);
  p.rows = rows.mutable_data_ptr();
  checks.is_ok(cpu::gather_rows(p, torch_threads()));
  return rows;
}

// The sum over a token's rows, which is combine with weights of one.
Tensor gather_rows_backward(const Tensor& grad_rows, const Tensor& slot_to_row) {
  const Checks checks("gather_rows_backward");
  checks.has_dims(grad_rows, "grad_rows", 2, "[R, H]");
  CombineParams p = {};
  p.dtype = checks.data_dtype(grad_rows, "grad_rows");
  const Tensor rows = with_unit_inner_stride(grad_rows);
  const Tensor slots = checks.indices(slot_to_row, "slot_to_row", 2, "[T, K]");
  checks.rows_exist(slots, "slot_to_row", rows.size(0));
  p.num_tokens = slots.size(0);
  p.top_k = slots.size(1);
  p.hidden_size = rows.size(1);
  Tensor grad_x = allocate(rows, {p.num_tokens, p.hidden_size}, rows.scalar_type());
  p.rows = rows.const_data_ptr();
  p.rows_stride = rows.stride(0);
  p.slot_to_row = Checks::data<int32_t>(slots);
  p.out = grad_x.mutable_data_ptr();
  p.out_stride = p.hidden_size;
  checks.is_ok(cpu::combine_forward(p, torch_threads()));
  return grad_x;
}

}  // namespace

}  // namespace moe::torch_ops

STABLE_TORCH_LIBRARY_IMPL(moe_ext, CPU, m) {
  m.impl("permute", TORCH_BOX(&moe::torch_ops::permute));
  m.impl("gather_rows", TORCH_BOX(&moe::torch_ops::gather_rows));
  m.impl("gather_rows_backward", TORCH_BOX(&moe::torch_ops::gather_rows_backward));
}
