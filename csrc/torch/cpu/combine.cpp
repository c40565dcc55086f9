// combine, combine_backward and segment_sum for CPU tensors. Contract: moe/combine.h and schema.cpp.
#include "cpu/combine/combine.h"

#include <torch/csrc/stable/library.h>

#include <cstring>
#include <tuple>
#include <vector>

#include "torch/arguments/combine.h"
#include "torch/cpu/huge_pages.h"
#include "torch/cpu/threads.h"

namespace moe::torch_ops {

namespace {

Tensor combine(const Tensor& rows, const Tensor& topk_weights, const Tensor& slot_to_row) {
  const Checks checks("combine");
  CombineArguments a(checks, rows, topk_weights, slot_to_row);
  checks.rows_exist(a.slots, "slot_to_row", a.rows.size(0));
  ask_for_huge_pages(a.y);
  checks.is_ok(cpu::combine_forward(a.params, torch_threads()));
  return a.y;
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
  CombineBackwardArguments a(checks, grad_y, rows, topk_weights, slot_to_row);
  checks.rows_exist(a.slots, "slot_to_row", a.num_rows());
  const std::vector<char> has_slot = rows_with_slot(checks, a.slots, a.num_rows());
  ask_for_huge_pages(a.grad_rows);
  const cpu::Parallel parallel = torch_threads();
  checks.is_ok(cpu::combine_backward(a.params, parallel));

  const int64_t row_bytes = a.params.hidden_size * size_of(a.params.dtype);
  parallel.for_ranges(a.num_rows(), 1024, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      if (has_slot[static_cast<size_t>(r)]) continue;
      std::memset(static_cast<char*>(a.params.grad_rows) + r * row_bytes, 0, static_cast<size_t>(row_bytes));
    }
  });
  return {a.grad_rows, a.grad_weights};
}

Tensor segment_sum(const Tensor& rows, const Tensor& expert_offsets) {
  const Checks checks("segment_sum");
  const SegmentSumArguments a(checks, rows, expert_offsets);
  checks.offsets_fit(a.offsets, "expert_offsets", a.rows.size(0));
  checks.is_ok(cpu::segment_sum(a.params, torch_threads()));
  return a.out;
}

}  // namespace

}  // namespace moe::torch_ops

STABLE_TORCH_LIBRARY_IMPL(moe_ext, CPU, m) {
  m.impl("combine", TORCH_BOX(&moe::torch_ops::combine));
  m.impl("combine_backward", TORCH_BOX(&moe::torch_ops::combine_backward));
  m.impl("segment_sum", TORCH_BOX(&moe::torch_ops::segment_sum));
}
