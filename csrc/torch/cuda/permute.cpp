// permute, gather_rows and gather_rows_backward for CUDA tensors. Contract: moe/permute.h and schema.cpp. What index
// tensors hold stays on the device: a kernel never follows an index that leads out of a tensor.
#include "cuda/permute/permute.h"

#include <optional>
#include <string>
#include <tuple>

#include "cuda/combine/combine.h"
#include "torch/arguments/permute.h"
#include "torch/cuda/launching.h"

namespace moe::torch_ops {

namespace {

std::tuple<Tensor, Tensor, Tensor> permute(const Tensor& topk_ids, int64_t num_experts, std::optional<int64_t> capacity,
                                           const std::string& drop_order) {
  const Checks checks("permute", kKernelPlace);
  const PermuteArguments a(checks, topk_ids, num_experts, capacity, drop_order);
  Launching launching(checks, a.ids);
  void* workspace = launching.workspace(cuda::permute_workspace_bytes(a.params));
  launching.is_ok(cuda::permute(a.params, {}, workspace, launching.stream()), "topk_ids ", shape_text(topk_ids),
                  ", num_experts ", num_experts);
  return {a.expert_offsets, a.row_to_slot, a.slot_to_row};
}

Tensor gather_rows(const Tensor& x, const Tensor& row_to_slot, const Tensor& expert_offsets, int64_t top_k) {
  const Checks checks("gather_rows", kKernelPlace);
  const GatherRowsArguments a(checks, x, row_to_slot, expert_offsets, top_k);
  const Launching launching(checks, a.x);
  launching.is_ok(cuda::gather_rows({.params = a.params,
                                     .expert_offsets = Checks::data<int32_t>(a.offsets),
                                     .num_experts = a.offsets.numel() - 1,
                                     .num_tokens = a.x.size(0)},
                                    launching.stream()),
                  "x ", shape_text(x), ", ", a.params.num_rows, " rows");
  return a.rows;
}

Tensor gather_rows_backward(const Tensor& grad_rows, const Tensor& slot_to_row) {
  const Checks checks("gather_rows_backward", kKernelPlace);
  const GatherRowsBackwardArguments a(checks, grad_rows, slot_to_row);
  const Launching launching(checks, a.rows);
  launching.is_ok(cuda::combine_forward(a.params, {.num_rows = a.rows.size(0)}, launching.stream()), "grad_rows ",
                  shape_text(grad_rows), ", slot_to_row ", shape_text(slot_to_row));
  return a.grad_x;
}

}  // namespace

}  // namespace moe::torch_ops

MOE_EXT_LIBRARY_IMPL(MOE_EXT_OPS, MOE_EXT_KERNEL_KEY, m) {
  m.impl("permute", TORCH_BOX(&moe::torch_ops::permute));
  m.impl("gather_rows", TORCH_BOX(&moe::torch_ops::gather_rows));
  m.impl("gather_rows_backward", TORCH_BOX(&moe::torch_ops::gather_rows_backward));
}
