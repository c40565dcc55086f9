// soft_mix and soft_mix_backward for CUDA tensors. Contract: moe/soft.h and schema.cpp.
#include "cuda/soft/soft.h"

#include <optional>
#include <tuple>

#include "torch/arguments/soft.h"
#include "torch/cuda/launching.h"

namespace moe::torch_ops {

namespace {

std::tuple<Tensor, Tensor> soft_mix(const Tensor& values, const Tensor& logits, std::optional<Tensor> token_mask,
                                    bool dispatch) {
  const Checks checks("soft_mix", kKernelPlace);
  const SoftMixArguments a(checks, values, logits, token_mask, dispatch);
  const Launching launching(checks, a.values);
  launching.is_ok(cuda::soft_mix(a.params, launching.device(), launching.stream()), "values ", shape_text(values),
                  ", logits ", shape_text(logits));
  return {a.mixed, a.statistics};
}

std::tuple<Tensor, Tensor> soft_mix_backward(const Tensor& grad_mixed, const Tensor& values, const Tensor& logits,
                                             std::optional<Tensor> token_mask, const Tensor& mixed,
                                             const Tensor& statistics, bool dispatch, bool values_grad,
                                             bool logits_grad) {
  const Checks checks("soft_mix_backward", kKernelPlace);
  const SoftMixBackwardArguments a(checks, grad_mixed, values, logits, token_mask, mixed, statistics, dispatch,
                                   values_grad, logits_grad);
  Launching launching(checks, a.values);
  void* workspace = launching.workspace(cuda::soft_mix_backward_workspace_bytes(a.backward));
  launching.is_ok(cuda::soft_mix_backward(a.backward, workspace, launching.device(), launching.stream()), "values ",
                  shape_text(values), ", logits ", shape_text(logits));
  return {a.grad_values, a.grad_logits};
}

}  // namespace

}  // namespace moe::torch_ops

MOE_EXT_LIBRARY_IMPL(MOE_EXT_OPS, MOE_EXT_KERNEL_KEY, m) {
  m.impl("soft_mix", TORCH_BOX(&moe::torch_ops::soft_mix));
  m.impl("soft_mix_backward", TORCH_BOX(&moe::torch_ops::soft_mix_backward));
}
