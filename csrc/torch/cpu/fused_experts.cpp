// fused_experts and its backward for CPU tensors. Contract: moe/fused_experts.h and schema.cpp.
#include "cpu/fused_experts/fused_experts.h"

#include <torch/csrc/stable/library.h>

#include <cstring>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "cpu/isa.h"
#include "cpu/permute/permute.h"
#include "torch/arguments/fused_experts.h"
#include "torch/cpu/huge_pages.h"
#include "torch/cpu/kept_tensor.h"
#include "torch/cpu/threads.h"

namespace moe::torch_ops {

namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor> fused_experts(
    const Tensor& x, const Tensor& w_gate_up, const Tensor& w_down, const Tensor& topk_weights, const Tensor& topk_ids,
    const std::optional<Tensor>& b_gate_up, const std::optional<Tensor>& b_down, const std::string& activation,
    double alpha, double limit, bool interleaved, bool transposed, const std::string& apply_weights,
    const std::string& save, std::optional<int64_t> workspace_limit, bool deterministic,
    std::optional<int64_t> max_rows) {
  FusedExpertsArguments a(Place::kCpu, x, w_gate_up, w_down, topk_weights, topk_ids, b_gate_up, b_down, activation,
                          alpha, limit, interleaved, transposed, apply_weights, save, workspace_limit, max_rows);
  FusedExpertsProblem& p = a.problem;
  a.checks.check(!p.w_gate_up.is_tiled || cpu::current_isa() == cpu::Isa::kAmx,
                 "tiled weights need the instruction set amx, got ", cpu::isa_name(cpu::current_isa()));
  p.batch_invariant = deterministic;
  std::vector<int32_t> row_to_slot(a.num_slots());
  p.row_to_slot = row_to_slot.data();
  const cpu::Parallel parallel = torch_threads();
  PermuteParams routing = {};
  routing.num_tokens = p.num_tokens;
  routing.top_k = p.top_k;
  routing.num_experts = p.num_experts;
  routing.topk_ids = a.ids.const_data_ptr();
  routing.ids_are_int64 = a.ids_are_int64;
  routing.expert_offsets = static_cast<int32_t*>(a.expert_offsets.mutable_data_ptr());
  routing.row_to_slot = row_to_slot.data();
  routing.slot_to_row = static_cast<int32_t*>(a.slot_to_row.mutable_data_ptr());
  a.checks.is_ok(cpu::permute(routing, parallel));
  a.checks.check(p.expert_offsets[p.num_experts] <= p.num_rows, "max_rows must be at least ",
                 p.expert_offsets[p.num_experts], ", the slots of topk_ids that name an expert, got ", p.num_rows);

  ask_for_huge_pages(a.y);
  if (a.keep_preact) {
    ask_for_huge_pages(a.preact);
    const int64_t used = p.expert_offsets[p.num_experts];
    const int64_t row_bytes = a.preact_width() * static_cast<int64_t>(a.preact.element_size());
    std::memset(static_cast<char*>(a.preact_data()) + used * row_bytes, 0, (a.num_rows() - used) * row_bytes);
  }
  a.checks.is_ok(cpu::fused_experts({.problem = p, .preact = a.preact_data(), .y = a.y.mutable_data_ptr()}, parallel));
  return {a.y, a.preact, a.expert_offsets, a.slot_to_row};
}

// The inverse of slot_to_row, which is cheaper to make again than to keep. Every row below expert_offsets[E] must have
// exactly one slot.
std::vector<int32_t> slots_of_rows(const Checks& checks, const Tensor& offsets, const Tensor& slot_to_row) {
  const int32_t* row_of = Checks::data<int32_t>(slot_to_row);
  const int32_t* bounds = Checks::data<int32_t>(offsets);
  const int64_t num_valid = bounds[offsets.numel() - 1];
  checks.check(bounds[0] == 0, "expert_offsets must begin at 0, got ", bounds[0]);
  checks.rows_exist(slot_to_row, "slot_to_row", num_valid);
  std::vector<int32_t> slot_of(slot_to_row.numel(), -1);
  for (int64_t slot = 0; slot < slot_to_row.numel(); ++slot) {
    if (row_of[slot] < 0) continue;
    checks.check(slot_of[row_of[slot]] < 0, "slot_to_row names row ", row_of[slot], " more than once");
    slot_of[row_of[slot]] = static_cast<int32_t>(slot);
  }
  for (int64_t row = 0; row < num_valid; ++row) {
    checks.check(slot_of[row] >= 0, "slot_to_row names no slot for row ", row, " of ", num_valid);
  }
  return slot_of;
}

ExpertGradients fused_experts_backward(const Tensor& grad_y, const Tensor& x, const Tensor& w_gate_up,
                                       const Tensor& w_down, const Tensor& topk_weights,
                                       const std::optional<Tensor>& b_gate_up, const std::optional<Tensor>& b_down,
                                       const Tensor& preact, const Tensor& expert_offsets, const Tensor& slot_to_row,
                                       const std::string& activation, double alpha, double limit, bool interleaved,
                                       bool transposed, const std::string& apply_weights,
                                       std::optional<int64_t> workspace_limit, bool deterministic, bool x_grad,
                                       bool weight_grads, bool routing_grad, std::optional<int64_t> max_rows) {
  FusedExpertsBackwardArguments a(Place::kCpu, grad_y, x, w_gate_up, w_down, topk_weights, b_gate_up, b_down, preact,
                                  expert_offsets, slot_to_row, activation, alpha, limit, interleaved, transposed,
                                  apply_weights, workspace_limit, x_grad, weight_grads, routing_grad, max_rows,
                                  &empty_kept);
  a.checks.offsets_fit(a.expert_offsets, "expert_offsets", a.num_rows());
  const std::vector<int32_t> row_to_slot = slots_of_rows(a.checks, a.expert_offsets, a.slot_to_row);
  a.problem.row_to_slot = row_to_slot.data();
  a.problem.batch_invariant = deterministic;
  a.params.problem = a.problem;
  std::apply([](auto&... gradient) { (ask_for_huge_pages(gradient), ...); }, a.gradients);
  a.checks.is_ok(cpu::fused_experts_backward(a.params, torch_threads()));
  return a.gradients;
}

}  // namespace

}  // namespace moe::torch_ops

STABLE_TORCH_LIBRARY_IMPL(moe_ext, CPU, m) {
  m.impl("fused_experts", TORCH_BOX(&moe::torch_ops::fused_experts));
  m.impl("fused_experts_backward", TORCH_BOX(&moe::torch_ops::fused_experts_backward));
}
