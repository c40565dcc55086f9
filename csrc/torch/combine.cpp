// combine, combine_backward and segment_sum for CPU tensors. Contract: moe/combine.h and schema.cpp.
#include "cpu/combine/combine.h"

#include <torch/csrc/stable/library.h>

#include <cstring>
#include <tuple>
#include <vector>

#include "torch/allocate.h"
#include "torch/checks.h"

namespace moe::torch_ops {

namespace {

Tensor combine(const Tensor& rows, const Tensor& topk_weights, const Tensor& slot_to_row) {
  const Checks checks("combine");
  checks.has_dims(rows, "rows", 2, "[R, H]");
  CombineParams p = {};
  p.dtype = checks.data_dtype(rows, "rows");
  const Tensor source = with_unit_inner_stride(rows);
  const Tensor slots = checks.indices(slot_to_row, "slot_to_row", 2, "[T, K]");
  checks.rows_exist(slots, "slot_to_row", source.size(0));
  p.num_tokens = slots.size(0);
  p.top_k = slots.size(1);
  p.hidden_size = source.size(1);
  const Tensor weights = checks.routing_weights(topk_weights, "topk_weights", p.dtype, p.num_tokens, p.top_k);
  Tensor y = allocate(source, {p.num_tokens, p.hidden_size}, source.scalar_type());
  p.rows = source.const_data_ptr();
  p.rows_stride = source.stride(0);
  p.topk_weights = weights.const_data_ptr();
  p.slot_to_row = Checks::data<int32_t>(slots);
  p.out = y.mutable_data_ptr();
  p.out_stride = p.hidden_size;
  checks.is_ok(cpu::combine_forward(p, torch_threads()));
  return y;
}

// Which rows have a slot. Fails if a row has two: its gradient would be written twice.
std::vector<char> rows_with_slot(const Checks& checks, const Tensor& slots, int64_t num_rows) {
  std::vector<char> found(static_cast<size_t>(num_rows), 0);
  const int32_t* row_of = Checks::data<int32_t>(slots);
  for (int64_t slot = 0; slot < slots.numel(); ++slot) {
    if (row_of[slot] < 0) continue;
    char& seen = found[static_cast<size_t>(row_of[slot])];
    checks.check(seen == 0, "slot_to_row names row ", row_of[slot], " more than once");
    seen = 1;
  }
  return found;
}

std::tuple<Tensor, Tensor> combine_backward(const Tensor& grad_y, const Tensor& rows, const Tensor& topk_weights,
                                            const Tensor& slot_to_row) {
  const Checks checks("combine_backward");
  checks.has_dims(grad_y, "grad_y", 2, "[T, H]");
  checks.has_dims(rows, "rows", 2, "[R, H]");
  CombineBackwardParams p = {};
  p.dtype = checks.data_dtype(rows, "rows");
  checks.has_dtype(grad_y, "grad_y", rows.scalar_type());
  const Tensor grad = with_unit_inner_stride(grad_y);
  const Tensor source = with_unit_inner_stride(rows);
  const Tensor slots = checks.indices(slot_to_row, "slot_to_row", 2, "[T, K]");
  const int64_t num_rows = source.size(0);
  checks.rows_exist(slots, "slot_to_row", num_rows);
  p.num_tokens = slots.size(0);
  p.top_k = slots.size(1);
  p.hidden_size = source.size(1);
  checks.has_size(grad, "grad_y", 0, p.num_tokens, "T");
  checks.has_size(grad, "grad_y", 1, p.hidden_size, "H");
  const Tensor weights = checks.routing_weights(topk_weights, "topk_weights", p.dtype, p.num_tokens, p.top_k);
  const std::vector<char> has_slot = rows_with_slot(checks, slots, num_rows);

  Tensor grad_rows = allocate(source, {num_rows, p.hidden_size}, source.scalar_type());
  Tensor grad_weights = empty_like(source, {p.num_tokens, p.top_k}, weights_dtype(p.dtype));
  p.grad_y = grad.const_data_ptr();
  p.grad_y_stride = grad.stride(0);
  p.rows = source.const_data_ptr();
  p.rows_stride = source.stride(0);
  p.topk_weights = weights.const_data_ptr();
  p.slot_to_row = Checks::data<int32_t>(slots);
  p.grad_rows = grad_rows.mutable_data_ptr();
  p.grad_topk_weights = grad_weights.mutable_data_ptr();
  const cpu::Parallel parallel = torch_threads();
  checks.is_ok(cpu::combine_backward(p, parallel));

  const int64_t row_bytes = p.hidden_size * size_of(p.dtype);
  parallel.for_ranges(num_rows, 1024, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      if (has_slot[static_cast<size_t>(r)]) continue;
      std::memset(static_cast<char*>(p.grad_rows) + r * row_bytes, 0, static_cast<size_t>(row_bytes));
    }
  });
  return {grad_rows, grad_weights};
}

Tensor segment_sum(const Tensor& rows, const Tensor& expert_offsets) {
  const Checks checks("segment_sum");
  checks.has_dims(rows, "rows", 2, "[R, N]");
  SegmentSumParams p = {};
  p.dtype = checks.data_dtype(rows, "rows");
  const Tensor source = with_unit_inner_stride(rows);
  const Tensor offsets = checks.indices(expert_offsets, "expert_offsets", 1, "[E + 1]");
  checks.offsets_fit(offsets, "expert_offsets", source.size(0));
  p.num_experts = offsets.numel() - 1;
  p.width = source.size(1);
  Tensor out = empty_like(source, {p.num_experts, p.width}, source.scalar_type());
  p.rows = source.const_data_ptr();
  p.rows_stride = source.stride(0);
  p.expert_offsets = Checks::data<int32_t>(offsets);
  p.out = out.mutable_data_ptr();
  checks.is_ok(cpu::segment_sum(p, torch_threads()));
  return out;
}

}  // namespace

}  // namespace moe::torch_ops

STABLE_TORCH_LIBRARY_IMPL(moe_ext, CPU, m) {
  m.impl("combine", TORCH_BOX(&moe::torch_ops::combine));
  m.impl("combine_backward", TORCH_BOX(&moe::torch_ops::combine_backward));
  m.impl("segment_sum", TORCH_BOX(&moe::torch_ops::segment_sum));
}
