// soft_mix and soft_mix_backward for CPU tensors. Contract: moe/soft.h and schema.cpp.
#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>

#include "cpu/soft/soft_mix.h"
#include "torch/arguments/soft.h"
#include "torch/cpu/huge_pages.h"
#include "torch/cpu/threads.h"

namespace moe::torch_ops {

namespace {

std::tuple<Tensor, Tensor> soft_mix(const Tensor& values, const Tensor& logits, std::optional<Tensor> token_mask,
                                    bool dispatch) {
  const Checks checks("soft_mix");
  SoftMixArguments a(checks, values, logits, token_mask, dispatch);
  ask_for_huge_pages(a.mixed);
  checks.is_ok(cpu::soft_mix(a.params, torch_threads()));
  return {a.mixed, a.statistics};
}

std::tuple<Tensor, Tensor> soft_mix_backward(const Tensor& grad_mixed, const Tensor& values, const Tensor& logits,
                                             std::optional<Tensor> token_mask, const Tensor& mixed,
                                             const Tensor& statistics, bool dispatch, bool values_grad,
                                             bool logits_grad) {
  const Checks checks("soft_mix_backward");
  SoftMixBackwardArguments a(checks, grad_mixed, values, logits, token_mask, mixed, statistics, dispatch, values_grad,
                             logits_grad);
  ask_for_huge_pages(a.grad_values);
  ask_for_huge_pages(a.grad_logits);
  checks.is_ok(cpu::soft_mix_backward(a.backward, torch_threads()));
  return {a.grad_values, a.grad_logits};
}

}  // namespace

}  // namespace moe::torch_ops

STABLE_TORCH_LIBRARY_IMPL(moe_ext, CPU, m) {
  m.impl("soft_mix", TORCH_BOX(&moe::torch_ops::soft_mix));
  m.impl("soft_mix_backward", TORCH_BOX(&moe::torch_ops::soft_mix_backward));
}
