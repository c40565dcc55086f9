// combine, combine_backward and segment_sum for CUDA tensors. Contract: moe/combine.h and schema.cpp.
#include "cuda/combine/combine.h"

#include <tuple>

#include "torch/arguments/combine.h"
#include "torch/cuda/launching.h"

namespace moe::torch_ops {

namespace {

Tensor combine(const Tensor& rows, const Tensor& topk_weights, const Tensor& slot_to_row) {
  const Checks checks("combine", kKernelPlace);
  const CombineArguments a(checks, rows, topk_weights, slot_to_row);
  const Launching launching(checks, a.rows);
  launching.is_ok(cuda::combine_forward(a.params, {.num_rows = a.rows.size(0)}, launching.stream()), "rows ",
                  shape_text(rows), ", slot_to_row ", shape_text(slot_to_row));
  return a.y;
}

std::tuple<Tensor, Tensor> combine_backward(const Tensor& grad_y, const Tensor& rows, const Tensor& topk_weights,
                                            const Tensor& slot_to_row) {
  const Checks checks("combine_backward", kKernelPlace);
  const CombineBackwardArguments a(checks, grad_y, rows, topk_weights, slot_to_row);
  Launching launching(checks, a.rows);
  void* workspace = launching.workspace(cuda::combine_backward_workspace_bytes(a.num_rows()));
  launching.is_ok(cuda::combine_backward(a.params, a.num_rows(), workspace, launching.stream()), "rows ",
                  shape_text(rows), ", slot_to_row ", shape_text(slot_to_row));
  return {a.grad_rows, a.grad_weights};
}

Tensor segment_sum(const Tensor& rows, const Tensor& expert_offsets) {
  const Checks checks("segment_sum", kKernelPlace);
  const SegmentSumArguments a(checks, rows, expert_offsets);
  const Launching launching(checks, a.rows);
  launching.is_ok(cuda::segment_sum({.params = a.params, .num_rows = a.rows.size(0), .num_tokens = a.rows.size(0)},
                                    launching.stream()),
                  "rows ", shape_text(rows), ", ", a.params.num_experts, " experts");
  return a.out;
}

}  // namespace

}  // namespace moe::torch_ops

MOE_EXT_LIBRARY_IMPL(MOE_EXT_OPS, MOE_EXT_KERNEL_KEY, m) {
  m.impl("combine", TORCH_BOX(&moe::torch_ops::combine));
  m.impl("combine_backward", TORCH_BOX(&moe::torch_ops::combine_backward));
  m.impl("segment_sum", TORCH_BOX(&moe::torch_ops::segment_sum));
}
