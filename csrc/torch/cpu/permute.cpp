// permute, gather_rows and gather_rows_backward for CPU tensors. Contract: moe/permute.h and schema.cpp.
#include "cpu/permute/permute.h"

#include <torch/csrc/stable/library.h>

#include <optional>
#include <string>
#include <tuple>

#include "cpu/combine/combine.h"
#include "torch/arguments/permute.h"
#include "torch/cpu/huge_pages.h"
#include "torch/cpu/threads.h"

namespace moe::torch_ops {

namespace {

std::tuple<Tensor, Tensor, Tensor> permute(const Tensor& topk_ids, int64_t num_experts, std::optional<int64_t> capacity,
                                           const std::string& drop_order) {
  const Checks checks("permute");
  const PermuteArguments a(checks, topk_ids, num_experts, capacity, drop_order);
  checks.is_ok(cpu::permute(a.params, torch_threads()));
  return {a.expert_offsets, a.row_to_slot, a.slot_to_row};
}

Tensor gather_rows(const Tensor& x, const Tensor& row_to_slot, const Tensor& expert_offsets, int64_t top_k) {
  const Checks checks("gather_rows");
  GatherRowsArguments a(checks, x, row_to_slot, expert_offsets, top_k);
  checks.offsets_fit(a.offsets, "expert_offsets", a.params.num_rows);
  a.params.num_valid = Checks::data<int32_t>(a.offsets)[a.offsets.numel() - 1];
  checks.slots_exist(a.slots, "row_to_slot", a.params.num_valid, a.num_slots());
  ask_for_huge_pages(a.rows);
  checks.is_ok(cpu::gather_rows(a.params, torch_threads()));
  return a.rows;
}

Tensor gather_rows_backward(const Tensor& grad_rows, const Tensor& slot_to_row) {
  const Checks checks("gather_rows_backward");
  GatherRowsBackwardArguments a(checks, grad_rows, slot_to_row);
  checks.rows_exist(a.slots, "slot_to_row", a.rows.size(0));
  ask_for_huge_pages(a.grad_x);
  checks.is_ok(cpu::combine_forward(a.params, torch_threads()));
  return a.grad_x;
}

}  // namespace

}  // namespace moe::torch_ops

STABLE_TORCH_LIBRARY_IMPL(moe_ext, CPU, m) {
  m.impl("permute", TORCH_BOX(&moe::torch_ops::permute));
  m.impl("gather_rows", TORCH_BOX(&moe::torch_ops::gather_rows));
  m.impl("gather_rows_backward", TORCH_BOX(&moe::torch_ops::gather_rows_backward));
}
