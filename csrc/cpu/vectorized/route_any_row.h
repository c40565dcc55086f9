// route for one row, whatever it holds and however it is to be routed: non-finite logits, any number of choices, any
// groups, float64. Rows that are tamer go through route_tile.h, to the same result.
#pragma once

#include "cpu/vectorized/route_row.h"

namespace moe::cpu::MOE_ISA {

namespace routing {

// The ids of the top_k largest keys, in order. Float keys and their complemented indices make 64-bit numbers without
// ties; the maxima of chunks of them are kept, so a round costs one pass over those and one over a chunk.
static inline void select(const Row<float>& row, int64_t count, int64_t top_k, int32_t* __restrict ids) {
  constexpr int64_t kChunk = 16, kGroup = 8;
  int64_t* __restrict candidates = row.candidates;
  int64_t* __restrict best = row.best;
  const int64_t padded = blocks_of(count) * kBlock;
  for (int64_t i = 0; i < padded; ++i) {
    candidates[i] = static_cast<int64_t>(row.keys[i]) * (int64_t{1} << 32) + (int64_t{UINT32_MAX} - i);
  }
  for (int64_t i = count; i < padded; ++i) candidates[i] = INT64_MIN;
  const int64_t chunks = padded / kChunk, padded_chunks = (chunks + kGroup - 1) / kGroup * kGroup;
  for (int64_t c = 0; c < chunks; ++c) best[c] = largest(candidates + c * kChunk, kChunk);
  for (int64_t c = chunks; c < padded_chunks; ++c) best[c] = INT64_MIN;

  // A chunk whose winner was taken gets its new maximum while the next winner is looked for: storing a single number
  // and loading the vector around it right after would stall.
  int64_t taken = INT64_MIN, runner_up = INT64_MIN;
  for (int64_t k = 0; k < top_k; ++k) {
    int64_t winner = INT64_MIN;
    for (int64_t c = 0; c < padded_chunks; ++c) {
      const int64_t current = best[c] == taken ? runner_up : best[c];
      best[c] = current;
      winner = current > winner ? current : winner;
    }
    const int64_t id = int64_t{UINT32_MAX} - (winner & int64_t{UINT32_MAX});
    ids[k] = static_cast<int32_t>(id);
    int64_t* __restrict chunk = candidates + id / kChunk * kChunk;
    runner_up = INT64_MIN;
#pragma GCC unroll 1
    for (int64_t l = 0; l < kChunk; ++l) {
      const int64_t current = chunk[l] == winner ? INT64_MIN : chunk[l];
      chunk[l] = current;
      runner_up = current > runner_up ? current : runner_up;
    }
    taken = winner;
  }
}

static inline void select(const Row<double>& row, int64_t count, int64_t top_k, int32_t* __restrict ids) {
  for (int64_t k = 0; k < top_k; ++k) {
    const int64_t id = first_equal(row.keys, largest(row.keys, count));
    ids[k] = static_cast<int32_t>(id);
    row.keys[id] = KeyOf<double>::kLowest;
  }
}

// The sum of a group's largest values, largest first.
template <class A>
static inline A group_score(const key_t<A>* __restrict keys, int64_t size, int64_t top, key_t<A>* __restrict spare) {
  constexpr key_t<A> kLowest = KeyOf<A>::kLowest;
  const key_t<A> first = largest(keys, size);
  if (top == 1) return value_of(first);
  if (top == 2) {
    key_t<A> second = kLowest;
    int32_t equal = 0;
    for (int64_t i = 0; i < size; ++i) {
      const key_t<A> below = keys[i] == first ? kLowest : keys[i];
      equal += keys[i] == first ? 1 : 0;
      second = below > second ? below : second;
    }
    return value_of(first) + value_of(equal > 1 ? first : second);
  }
  for (int64_t i = 0; i < size; ++i) spare[i] = keys[i];
  A sum = value_of(first);
  spare[first_equal(spare, first)] = kLowest;
  for (int64_t k = 1; k < top; ++k) {
    const key_t<A> next = largest(spare, size);
    spare[first_equal(spare, next)] = kLowest;
    sum += value_of(next);
  }
  return sum;
}

template <class A>
static inline void keep_best_groups(const RouteParams& p, const Row<A>& row) {
  constexpr key_t<A> kLowest = KeyOf<A>::kLowest;
  const int64_t size = p.num_experts / p.num_groups;
  const int64_t top = p.group_top < size ? p.group_top : size;
  // Candidates are not in use yet.
  key_t<A>* group_keys = reinterpret_cast<key_t<A>*>(row.candidates);
  for (int64_t g = 0; g < p.num_groups; ++g) {
    group_keys[g] = rank(group_score<A>(row.keys + g * size, size, top, row.spare));
  }
  for (int64_t k = 0; k < p.topk_groups; ++k) {
    group_keys[first_equal(group_keys, largest(group_keys, p.num_groups))] = kLowest;
  }
  const key_t<A> fill = rank(p.group_fill == GroupFill::kZero ? A(0) : -infinity(A()));
  for (int64_t g = 0; g < p.num_groups; ++g) {
    if (group_keys[g] == kLowest) continue;
    for (int64_t i = g * size; i < (g + 1) * size; ++i) row.keys[i] = fill;
  }
}

// Stores score(z) and the key of score(z) + bias for a padded row.
template <class A, class Score>
static inline void score_and_rank(const Row<A>& row, int64_t blocks, const Score& score) {
  const A* __restrict z = row.z;
  const A* __restrict bias = row.bias;
  A* __restrict scores = row.scores;
  key_t<A>* __restrict keys = row.keys;
  for (int64_t i = 0; i < blocks * kBlock; ++i) {
    const A s = score(z[i]);
    scores[i] = s;
    keys[i] = rank(s + bias[i]);
  }
}

// Spoils row.z for a softmax over all experts, which is returned.
template <class A>
static inline Softmax<A> score_row(const RouteRule& rule, const Row<A>& row, int64_t blocks) {
  if (rule.score == Score::kNone || rule.softmax_after) {
    score_and_rank(row, blocks, [](A z) __attribute__((always_inline)) { return z; });
  } else if (rule.score == Score::kSigmoid) {
    score_and_rank(row, blocks, [](A z) __attribute__((always_inline)) { return sigmoid(z); });
  } else if (rule.score == Score::kSqrtSoftplus) {
    score_and_rank(row, blocks, [](A z) __attribute__((always_inline)) { return square_root(softplus(z)); });
  } else {
    const Softmax<A> softmax = exponentiate(row.z, blocks);
    const A sum = softmax.sum;
    score_and_rank(row, blocks, [sum](A e) __attribute__((always_inline)) { return e / sum; });
    return softmax;
  }
  return {};
}

template <class A>
static inline void weigh(const RouteRule& rule, const A* __restrict scores, const int32_t* __restrict ids,
                         int64_t top_k, A* __restrict weights) {
  for (int64_t k = 0; k < top_k; ++k) weights[k] = scores[ids[k]];
  if (rule.softmax_after) {
    key_t<A> best = rank(weights[0]);
    for (int64_t k = 1; k < top_k; ++k) best = rank(weights[k]) > best ? rank(weights[k]) : best;
    const A maximum = value_of(best);
    for (int64_t k = 0; k < top_k; ++k) weights[k] = exp(weights[k] - maximum);
    A sum = 0;
    for (int64_t k = 0; k < top_k; ++k) sum += weights[k];
    for (int64_t k = 0; k < top_k; ++k) weights[k] /= sum;
  }
  if (rule.renormalize) {
    A sum = 0;
    for (int64_t k = 0; k < top_k; ++k) sum += weights[k];
    sum += static_cast<A>(rule.eps);
    for (int64_t k = 0; k < top_k; ++k) weights[k] /= sum;
  }
  const A scale = static_cast<A>(rule.scale);
  for (int64_t k = 0; k < top_k; ++k) weights[k] *= scale;
}

// sums += e / sum; `moderate` where quotients can make the division cheaper. Spoils scores.
static inline void add_quotients(const float* __restrict e, float sum, bool moderate, int64_t blocks,
                                 float* __restrict scores, float* __restrict sums, int64_t count) {
  if (moderate) {
    quotients(e, sum, scores, blocks * kBlock);
    for (int64_t i = 0; i < count; ++i) sums[i] += scores[i];
  } else {
    for (int64_t i = 0; i < count; ++i) sums[i] += e[i] / sum;
  }
}
static inline void add_quotients(const double* __restrict e, double sum, bool, int64_t, double*,
                                 double* __restrict sums, int64_t count) {
  for (int64_t i = 0; i < count; ++i) sums[i] += e[i] / sum;
}

// Adds a row to p.statistics; `moderate`: softmax is one of logits up to kModerate. Spoils row.z and row.scores.
template <class A>
static inline void add_statistics(const RouteParams& p, const Row<A>& row, int64_t blocks, Softmax<A> softmax,
                                  bool moderate, const int32_t* __restrict ids) {
  if (p.statistics.expert_counts != nullptr) {
    for (int64_t k = 0; k < p.top_k; ++k) ++p.statistics.expert_counts[ids[k]];
  }
  A* __restrict sums = static_cast<A*>(p.statistics.score_sums);
  A* z_sum = static_cast<A*>(p.statistics.z_sum);
  if (sums == nullptr && z_sum == nullptr) return;
  const bool is_softmax = p.rule.score == Score::kSoftmax;
  const int64_t count = p.num_experts;
  A* __restrict scores = row.scores;
  if (sums != nullptr && !is_softmax) {
    for (int64_t i = count; i < blocks * kBlock; ++i) scores[i] = 0;
    const A sum = at_least_tiny(row_sum(scores, blocks));
    for (int64_t i = 0; i < count; ++i) sums[i] += scores[i] / sum;
  }
  if (!is_softmax || p.rule.softmax_after) softmax = exponentiate(row.z, blocks);
  if (sums != nullptr && is_softmax) {
    add_quotients(row.z, softmax.sum, moderate, blocks, row.scores, sums, count);
  }
  if (z_sum == nullptr) return;
  const A lse = softmax.maximum + natural_log(softmax.sum), square = lse * lse;
  if (p.rule.nonfinite != NonFinite::kSanitize || square < infinity(A())) *z_sum += square;
}

MOE_INLINE bool is_group_wise(const RouteParams& p) { return p.num_groups > 1 && p.topk_groups < p.num_groups; }
MOE_INLINE bool has_statistics(const RouteParams& p) {
  return p.statistics.score_sums != nullptr || p.statistics.expert_counts != nullptr || p.statistics.z_sum != nullptr;
}

// Routes token t. False where that is an error with NonFinite::kError.
template <class T>
static inline bool route_row(const RouteParams& p, const Row<acc_t<T>>& row, int64_t t) {
  using A = acc_t<T>;
  const int64_t count = p.num_experts, blocks = blocks_of(count), padded = blocks * kBlock;
  A* __restrict z = row.z;
  load(static_cast<const T*>(p.logits) + t * p.logits_stride, count, z);
  for (int64_t i = count; i < padded; ++i) z[i] = -infinity(A());
  A* weights = static_cast<A*>(p.topk_weights) + t * p.top_k;
  int32_t* ids = p.topk_ids + t * p.top_k;
  if (p.rule.nonfinite != NonFinite::kPropagate) {
    int32_t bad = 0, alive = 0;
    for (int64_t i = 0; i < padded; ++i) {
      bad |= z[i] < infinity(A()) ? 0 : 1;
      z[i] = sanitized(z[i]);
      alive |= z[i] > -infinity(A()) ? 1 : 0;
    }
    if (p.rule.nonfinite == NonFinite::kError) {
      if (bad != 0 || alive == 0) return false;
    } else if (alive == 0) {
      for (int64_t k = 0; k < p.top_k; ++k) {
        weights[k] = 0;
        ids[k] = -1;
      }
      return true;
    }
  }
  const Softmax<A> softmax = score_row(p.rule, row, blocks);
  if (is_group_wise(p)) keep_best_groups(p, row);
  select(row, count, p.top_k, ids);
  weigh(p.rule, row.scores, ids, p.top_k, weights);
  if (has_statistics(p)) add_statistics(p, row, blocks, softmax, false, ids);
  return true;
}

}  // namespace routing

}  // namespace moe::cpu::MOE_ISA
