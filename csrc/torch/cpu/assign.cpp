// expert_choice, auction and sinkhorn for CPU tensors. Contract: moe/assign.h and schema.cpp.
#include "cpu/assign/assign.h"

#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>

#include "torch/arguments/assign.h"
#include "torch/cpu/huge_pages.h"
#include "torch/cpu/threads.h"

namespace moe::torch_ops {

namespace {

std::tuple<Tensor, Tensor> expert_choice(const Tensor& scores, int64_t capacity, int64_t num_groups,
                                         std::optional<Tensor> token_mask, int64_t max_experts_per_token) {
  const Checks checks("expert_choice");
  ExpertChoiceArguments a(checks, scores, capacity, num_groups, token_mask, max_experts_per_token);
  ask_for_huge_pages(a.topk_ids);
  checks.is_ok(cpu::expert_choice(a.params, torch_threads()));
  return {a.token_ids, a.topk_ids};
}

Tensor auction(const Tensor& scores, std::optional<Tensor> token_mask, int64_t max_rounds) {
  const Checks checks("auction");
  const AuctionArguments a(checks, scores, token_mask, max_rounds);
  checks.is_ok(cpu::auction(a.params, torch_threads()));
  return a.expert_ids;
}

Tensor sinkhorn(const Tensor& logits, double tolerance, int64_t max_iterations) {
  const Checks checks("sinkhorn");
  SinkhornArguments a(checks, logits, tolerance, max_iterations);
  ask_for_huge_pages(a.balanced);
  checks.is_ok(cpu::sinkhorn(a.params, torch_threads()));
  return a.balanced;
}

}  // namespace

}  // namespace moe::torch_ops

STABLE_TORCH_LIBRARY_IMPL(moe_ext, CPU, m) {
  m.impl("expert_choice", TORCH_BOX(&moe::torch_ops::expert_choice));
  m.impl("auction", TORCH_BOX(&moe::torch_ops::auction));
  m.impl("sinkhorn", TORCH_BOX(&moe::torch_ops::sinkhorn));
}
