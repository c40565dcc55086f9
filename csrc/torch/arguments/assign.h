// The arguments of expert_choice, auction and sinkhorn, checked, and their results, allocated: the same for every
// backend.
#pragma once

#include <optional>

#include "moe/assign.h"
#include "torch/checks.h"

namespace moe::torch_ops {

// [T, E], float or double, of any row stride.
inline Tensor checked_scores(const Checks& checks, const Tensor& scores, const char* name) {
  checks.has_dims(scores, name, 2, "[T, E]");
  const ScalarType dtype = scores.scalar_type();
  checks.check(dtype == ScalarType::Float || dtype == ScalarType::Double, name, " must be Float or Double, got ",
               dtype);
  const int64_t num_experts = scores.size(1);
  checks.check(num_experts >= 1 && num_experts < INT32_MAX, name, " must have 1 .. 2^31 - 2 experts, got ",
               shape_text(scores));
  checks.check(scores.size(0) < INT32_MAX, name, " must have fewer than 2^31 - 1 tokens, got ", shape_text(scores));
  return with_unit_inner_stride(scores);
}

inline std::optional<Tensor> checked_mask(const Checks& checks, const std::optional<Tensor>& mask, int64_t num_tokens) {
  if (!mask) return std::nullopt;
  checks.has_dims(*mask, "token_mask", 1, "[T]");
  checks.has_size(*mask, "token_mask", 0, num_tokens, "T");
  checks.has_dtype(*mask, "token_mask", ScalarType::Bool);
  return torch::stable::contiguous(*mask);
}

inline const uint8_t* mask_data(const std::optional<Tensor>& mask) {
  return mask ? static_cast<const uint8_t*>(mask->const_data_ptr()) : nullptr;
}

struct ExpertChoiceArguments {
  ExpertChoiceParams params = {};
  Tensor scores, token_ids, topk_ids;
  std::optional<Tensor> mask;

  ExpertChoiceArguments(const Checks& checks, const Tensor& given, int64_t capacity, int64_t num_groups,
                        const std::optional<Tensor>& token_mask, int64_t max_experts_per_token) {
    ExpertChoiceParams& p = params;
    p.dtype = checks.data_dtype(given, "scores");
    scores = checked_scores(checks, given, "scores");
    const int64_t num_tokens = scores.size(0);
    p.num_experts = scores.size(1);
    checks.check(num_groups >= 1 && num_tokens % num_groups == 0, "num_groups must divide ", num_tokens, " (T), got ",
                 num_groups);
    p.num_groups = num_groups;
    p.group_size = num_tokens / num_groups;
    p.capacity = capacity;
    checks.check(capacity >= 0 && capacity <= p.group_size, "capacity must be 0 .. ", p.group_size,
                 ", the tokens of a group, got ", capacity);
    p.max_experts = max_experts_per_token;
    checks.check(p.max_experts >= 1 && p.max_experts <= p.num_experts, "max_experts_per_token must be 1 .. ",
                 p.num_experts, " (E), got ", max_experts_per_token);
    mask = checked_mask(checks, token_mask, num_tokens);
    p.token_mask = mask_data(mask);
    p.scores = scores.const_data_ptr();
    p.scores_stride = scores.stride(0);
    token_ids = empty_like(scores, {num_groups, p.num_experts, capacity}, ScalarType::Int);
    topk_ids = empty_like(scores, {num_tokens, p.max_experts}, ScalarType::Int);
    p.token_ids = static_cast<int32_t*>(token_ids.mutable_data_ptr());
    p.topk_ids = static_cast<int32_t*>(topk_ids.mutable_data_ptr());
  }
};

struct AuctionArguments {
  AuctionParams params = {};
  Tensor scores, expert_ids;
  std::optional<Tensor> mask;

  AuctionArguments(const Checks& checks, const Tensor& given, const std::optional<Tensor>& token_mask,
                   int64_t max_rounds) {
    AuctionParams& p = params;
    p.dtype = checks.data_dtype(given, "scores");
    scores = checked_scores(checks, given, "scores");
    p.num_tokens = scores.size(0);
    p.num_experts = scores.size(1);
    p.scores = scores.const_data_ptr();
    p.scores_stride = scores.stride(0);
    mask = checked_mask(checks, token_mask, p.num_tokens);
    p.token_mask = mask_data(mask);
    p.max_rounds = max_rounds;
    checks.check(max_rounds >= 0, "max_rounds must be at least 0, got ", max_rounds);
    expert_ids = empty_like(scores, {p.num_tokens}, ScalarType::Int);
    p.expert_ids = static_cast<int32_t*>(expert_ids.mutable_data_ptr());
  }
};

struct SinkhornArguments {
  SinkhornParams params = {};
  Tensor logits, balanced;

  SinkhornArguments(const Checks& checks, const Tensor& given, double tolerance, int64_t max_iterations) {
    SinkhornParams& p = params;
    p.dtype = checks.data_dtype(given, "logits");
    logits = checked_scores(checks, given, "logits");
    p.num_tokens = logits.size(0);
    p.num_experts = logits.size(1);
    p.logits = logits.const_data_ptr();
    p.logits_stride = logits.stride(0);
    p.tolerance = tolerance;
    p.max_iterations = max_iterations;
    checks.check(max_iterations >= 0, "max_iterations must be at least 0, got ", max_iterations);
    balanced = empty_like(logits, {p.num_tokens, p.num_experts}, logits.scalar_type());
    p.balanced = balanced.mutable_data_ptr();
  }
};

}  // namespace moe::torch_ops
