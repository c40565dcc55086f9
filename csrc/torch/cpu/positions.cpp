// slot_positions and expert_histogram for CPU tensors. Contract: moe/positions.h and schema.cpp.
#include "cpu/permute/positions.h"

#include <torch/csrc/stable/library.h>

#include <optional>
#include <string>
#include <tuple>

#include "torch/arguments/positions.h"
#include "torch/cpu/threads.h"

namespace moe::torch_ops {

namespace {

std::tuple<Tensor, Tensor> slot_positions(const Tensor& topk_ids, int64_t num_experts, const std::string& order,
                                          std::optional<Tensor> priority, std::optional<int64_t> group_size) {
  const Checks checks("slot_positions");
  const SlotPositionsArguments a(checks, topk_ids, num_experts, order, priority, group_size);
  checks.is_ok(cpu::slot_positions(a.params, torch_threads()));
  return {*a.positions, a.counts};
}

Tensor expert_histogram(const Tensor& topk_ids, int64_t num_experts, std::optional<int64_t> group_size) {
  const Checks checks("expert_histogram");
  const SlotPositionsArguments a(checks, topk_ids, num_experts, group_size);
  checks.is_ok(cpu::slot_positions(a.params, torch_threads()));
  return a.counts;
}

}  // namespace

}  // namespace moe::torch_ops

STABLE_TORCH_LIBRARY_IMPL(moe_ext, CPU, m) {
  m.impl("slot_positions", TORCH_BOX(&moe::torch_ops::slot_positions));
  m.impl("expert_histogram", TORCH_BOX(&moe::torch_ops::expert_histogram));
}
