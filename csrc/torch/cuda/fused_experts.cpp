// fused_experts and its backward for CUDA tensors. Contract: moe/fused_experts.h and schema.cpp.
#include "cuda/fused_experts/fused_experts.h"

#include <optional>
#include <string>
#include <tuple>

#include "torch/arguments/fused_experts.h"
#include "torch/cuda/launching.h"

namespace moe::torch_ops {

namespace {

cuda::ExpertsOptions options_of(const Launching& launching, bool deterministic) {
  return {.device = launching.device(), .allow_tf32 = Launching::allow_tf32(), .deterministic = deterministic};
}

void is_ok(const Launching& launching, const cuda::Outcome& outcome, const Experts& experts) {
  const FusedExpertsProblem& p = experts.problem;
  launching.is_ok(outcome, "num_tokens ", p.num_tokens, ", hidden_size ", p.hidden_size, ", intermediate_size ",
                  p.intermediate_size, ", num_experts ", p.num_experts, ", top_k ", p.top_k);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> fused_experts(
    const Tensor& x, const Tensor& w_gate_up, const Tensor& w_down, const Tensor& topk_weights, const Tensor& topk_ids,
    const std::optional<Tensor>& b_gate_up, const std::optional<Tensor>& b_down, const std::string& activation,
    double alpha, double limit, bool interleaved, bool transposed, const std::string& apply_weights,
    const std::string& save, std::optional<int64_t> workspace_limit, bool deterministic,
    std::optional<int64_t> max_rows) {
  FusedExpertsArguments a(kKernelPlace, x, w_gate_up, w_down, topk_weights, topk_ids, b_gate_up, b_down, activation,
                          alpha, limit, interleaved, transposed, apply_weights, save, workspace_limit, max_rows);
  Launching launching(a.checks, a.x);
  const cuda::FusedExpertsLaunch launch = {
      .params = {.problem = a.problem, .preact = a.preact_data(), .y = a.y.mutable_data_ptr()},
      .options = options_of(launching, deterministic),
      .topk_ids = a.ids.const_data_ptr(),
      .ids_are_int64 = a.ids_are_int64,
      .expert_offsets = static_cast<int32_t*>(a.expert_offsets.mutable_data_ptr()),
      .slot_to_row = static_cast<int32_t*>(a.slot_to_row.mutable_data_ptr())};
  void* workspace = launching.workspace(cuda::fused_experts_workspace_bytes(launch));
  is_ok(launching, cuda::fused_experts(launch, workspace, launching.stream()), a);
  return {a.y, a.preact, a.expert_offsets, a.slot_to_row};
}

ExpertGradients fused_experts_backward(const Tensor& grad_y, const Tensor& x, const Tensor& w_gate_up,
                                       const Tensor& w_down, const Tensor& topk_weights,
                                       const std::optional<Tensor>& b_gate_up, const std::optional<Tensor>& b_down,
                                       const Tensor& preact, const Tensor& expert_offsets, const Tensor& slot_to_row,
                                       const std::string& activation, double alpha, double limit, bool interleaved,
                                       bool transposed, const std::string& apply_weights,
                                       std::optional<int64_t> workspace_limit, bool deterministic, bool x_grad,
                                       bool weight_grads, bool routing_grad, std::optional<int64_t> max_rows) {
  FusedExpertsBackwardArguments a(kKernelPlace, grad_y, x, w_gate_up, w_down, topk_weights, b_gate_up, b_down, preact,
                                  expert_offsets, slot_to_row, activation, alpha, limit, interleaved, transposed,
                                  apply_weights, workspace_limit, x_grad, weight_grads, routing_grad, max_rows);
  Launching launching(a.checks, a.x);
  a.params.problem = a.problem;
  const cuda::FusedExpertsBackwardLaunch launch = {.params = a.params, .options = options_of(launching, deterministic)};
  void* workspace = launching.workspace(cuda::fused_experts_backward_workspace_bytes(launch));
  is_ok(launching, cuda::fused_experts_backward(launch, workspace, launching.stream()), a);
  return a.gradients;
}

}  // namespace

}  // namespace moe::torch_ops

MOE_EXT_LIBRARY_IMPL(MOE_EXT_OPS, MOE_EXT_KERNEL_KEY, m) {
  m.impl("fused_experts", TORCH_BOX(&moe::torch_ops::fused_experts));
  m.impl("fused_experts_backward", TORCH_BOX(&moe::torch_ops::fused_experts_backward));
}
