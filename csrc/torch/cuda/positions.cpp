// slot_positions and expert_histogram for CUDA tensors. Contract: moe/positions.h and schema.cpp.
#include "cuda/permute/positions.h"

#include <optional>
#include <string>
#include <tuple>

#include "torch/arguments/positions.h"
#include "torch/cuda/launching.h"

namespace moe::torch_ops {

namespace {

void run(const Checks& checks, const SlotPositionsArguments& a) {
  Launching launching(checks, a.ids);
  void* workspace = launching.workspace(cuda::slot_positions_workspace_bytes(a.params));
  launching.is_ok(cuda::slot_positions(a.params, workspace, launching.stream()), "topk_ids ", shape_text(a.ids),
                  ", num_experts ", a.params.num_experts, ", groups of ", a.params.group_size);
}

std::tuple<Tensor, Tensor> slot_positions(const Tensor& topk_ids, int64_t num_experts, const std::string& order,
                                          std::optional<Tensor> priority, std::optional<int64_t> group_size) {
  const Checks checks("slot_positions", kKernelPlace);
  const SlotPositionsArguments a(checks, topk_ids, num_experts, order, priority, group_size);
  run(checks, a);
  return {*a.positions, a.counts};
}

Tensor expert_histogram(const Tensor& topk_ids, int64_t num_experts, std::optional<int64_t> group_size) {
  const Checks checks("expert_histogram", kKernelPlace);
  const SlotPositionsArguments a(checks, topk_ids, num_experts, group_size);
  run(checks, a);
  return a.counts;
}

}  // namespace

}  // namespace moe::torch_ops

MOE_EXT_LIBRARY_IMPL(MOE_EXT_OPS, MOE_EXT_KERNEL_KEY, m) {
  m.impl("slot_positions", TORCH_BOX(&moe::torch_ops::slot_positions));
  m.impl("expert_histogram", TORCH_BOX(&moe::torch_ops::expert_histogram));
}
