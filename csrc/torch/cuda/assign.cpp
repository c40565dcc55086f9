// expert_choice, auction and sinkhorn for CUDA tensors. Contract: moe/assign.h and schema.cpp.
#include "cuda/assign/assign.h"

#include <optional>
#include <tuple>

#include "torch/arguments/assign.h"
#include "torch/cuda/launching.h"

namespace moe::torch_ops {

namespace {

std::tuple<Tensor, Tensor> expert_choice(const Tensor& scores, int64_t capacity, int64_t num_groups,
                                         std::optional<Tensor> token_mask, int64_t max_experts_per_token) {
  const Checks checks("expert_choice", kKernelPlace);
  const ExpertChoiceArguments a(checks, scores, capacity, num_groups, token_mask, max_experts_per_token);
  Launching launching(checks, a.scores);
  void* workspace = launching.workspace(cuda::expert_choice_workspace_bytes(a.params));
  launching.is_ok(cuda::expert_choice(a.params, workspace, launching.stream()), "scores ", shape_text(a.scores),
                  ", capacity ", capacity, ", num_groups ", num_groups);
  return {a.token_ids, a.topk_ids};
}

Tensor auction(const Tensor& scores, std::optional<Tensor> token_mask, int64_t max_rounds) {
  const Checks checks("auction", kKernelPlace);
  const AuctionArguments a(checks, scores, token_mask, max_rounds);
  Launching launching(checks, a.scores);
  void* workspace = launching.workspace(cuda::auction_workspace_bytes(a.params));
  launching.is_ok(cuda::auction(a.params, workspace, launching.stream()), "scores ", shape_text(a.scores));
  return a.expert_ids;
}

Tensor sinkhorn(const Tensor& logits, double tolerance, int64_t max_iterations) {
  const Checks checks("sinkhorn", kKernelPlace);
  const SinkhornArguments a(checks, logits, tolerance, max_iterations);
  Launching launching(checks, a.logits);
  void* workspace = launching.workspace(cuda::sinkhorn_workspace_bytes(a.params));
  launching.is_ok(cuda::sinkhorn(a.params, workspace, launching.stream()), "logits ", shape_text(a.logits));
  return a.balanced;
}

}  // namespace

}  // namespace moe::torch_ops

MOE_EXT_LIBRARY_IMPL(MOE_EXT_OPS, MOE_EXT_KERNEL_KEY, m) {
  m.impl("expert_choice", TORCH_BOX(&moe::torch_ops::expert_choice));
  m.impl("auction", TORCH_BOX(&moe::torch_ops::auction));
  m.impl("sinkhorn", TORCH_BOX(&moe::torch_ops::sinkhorn));
}
