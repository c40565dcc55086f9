// Routing where experts choose, or an assignment does: expert_choice, auction, sinkhorn. Scores are [T,E] with unit
// stride over experts, float or double. A token that token_mask leaves out is chosen by nobody.
#pragma once

#include "moe/types.h"

namespace moe {

// The best tokens of each expert within each group of consecutive tokens: larger scores first, NaN above +inf, equal
// ones by the lower token. -inf is never chosen.
struct ExpertChoiceParams {
  DType dtype;  // of scores: kFloat32 or kFloat64
  int64_t num_groups;
  int64_t group_size;  // tokens of a group
  int64_t num_experts;
  int64_t capacity;     // C, at most group_size
  int64_t max_experts;  // K, at most num_experts
  const void* scores;
  int64_t scores_stride;
  const uint8_t* token_mask;  // [T], 0 for tokens to leave out; or null
  int32_t* token_ids;         // [G,E,C]: tokens 0 .. T-1, best first; -1 where none was left
  int32_t* topk_ids;          // [T,K]: the experts that chose a token, the K with its best scores, best first; then -1
};

// The assignment of tokens to experts, at most ceil(T / E) to each, whose summed score is within T * epsilon of the
// best one. Tokens bid (Bertsekas 1992): an unassigned token offers its best expert the price at which that is no
// better than its second best one, plus epsilon; an expert keeps the highest offers, of equal ones that of the lower
// token, and its price is the lowest that it keeps. All bid at once, so nothing depends on an order. epsilon is a
// fiftieth of the range of the scores, at least 1e-4 (BASE, Lewis et al. 2021). Scores that are not finite count as the
// lowest finite one.
struct AuctionParams {
  DType dtype;
  int64_t num_tokens;
  int64_t num_experts;
  const void* scores;
  int64_t scores_stride;
  const uint8_t* token_mask;
  int64_t max_rounds;   // tokens that are still without an expert then take, in order, the best one that has room
  int32_t* expert_ids;  // [T]; -1 for tokens left out
};

// diag(u) exp(logits) diag(v) with rows that sum to 1 and columns that sum to R / E, R the number of rows with anything
// in them. Alternates u = 1 / (K v) and v = (R / E) / (K^T u) until v changes by less than `tolerance` relative to
// itself, in the mean over the experts. NaN counts as -inf and +inf as the largest finite float; a row of -inf alone
// becomes zeros.
//
// Where -inf leaves no such matrix, v has no limit: what too many rows depend on falls from iteration to iteration. The
// last v before one with a factor below kSinkhornLeastFactor is then the one that counts, and everything stays finite.
constexpr double kSinkhornLeastSum = 1e-30;  // below it a column is one that nobody reaches: its factor would overflow
constexpr double kSinkhornLeastFactor = 1e-30;  // below it the factor of a row might

struct SinkhornParams {
  DType dtype;
  int64_t num_tokens;
  int64_t num_experts;
  const void* logits;
  int64_t logits_stride;
  double tolerance;
  int64_t max_iterations;
  void* balanced;  // [T,E] contiguous, in dtype
};

}  // namespace moe
