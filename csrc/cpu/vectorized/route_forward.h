// route, one token at a time: score, selection and weights in one pass over a row that stays in the
// first-level cache. Contract: moe/route.h.
//
// Experts are compared as integers whose order is that of the floats, NaN on top and -0 equal to 0, so every maximum
// below is exact, vectorises, and breaks ties by the lower index. Sums run over a fixed number of lanes. So the
// result depends neither on the instruction set nor on how tokens are cut into ranges.
#pragma once

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "cpu/vectorized/math.h"
#include "moe/route.h"

namespace moe::cpu::MOE_ISA {

namespace routing {

// Rows are padded to whole blocks: loops of full blocks need no scalar rest.
inline constexpr int64_t kBlock = 32;
inline constexpr int64_t kOutOfMemory = -2;

static inline int64_t blocks_of(int64_t count) { return (count + kBlock - 1) / kBlock; }

template <class A>
struct KeyOf {
  using type = int32_t;
  static constexpr int32_t kLowest = INT32_MIN;  // below the key of every float: padding, or already chosen
  static constexpr int32_t kHighest = INT32_MAX;
};
template <>
struct KeyOf<double> {
  using type = int64_t;
  static constexpr int64_t kLowest = INT64_MIN;
  static constexpr int64_t kHighest = INT64_MAX;
};
template <class A>
using key_t = typename KeyOf<A>::type;

// Integers in the order of the floats with these bits; its own inverse. NaN has no place in it.
MOE_INLINE int32_t order(int32_t bits) { return bits ^ ((bits >> 31) & INT32_MAX); }
MOE_INLINE int64_t order(int64_t bits) { return bits ^ ((bits >> 63) & INT64_MAX); }
MOE_INLINE bool is_nan(int32_t bits) { return (bits & INT32_MAX) > 0x7f800000; }
MOE_INLINE bool is_nan(int64_t bits) { return (bits & INT64_MAX) > 0x7ff0000000000000; }

// The order of experts: NaN above everything, -0 equal to 0.
template <class A>
MOE_INLINE key_t<A> rank(A x) {
  const key_t<A> bits = bits_of(x + A(0));
  const key_t<A> key = order(bits);
  return is_nan(bits) ? KeyOf<A>::kHighest : key;
}
MOE_INLINE float value_of(int32_t key) { return float_of(order(key)); }
MOE_INLINE double value_of(int64_t key) { return double_of(order(key)); }

MOE_INLINE float square_root(float x) { return __builtin_sqrtf(x); }
MOE_INLINE double square_root(double x) { return __builtin_sqrt(x); }

template <class K>
static inline K largest(const K* __restrict keys, int64_t count) {
  K best = keys[0];
#pragma GCC unroll 1  // unrolled whole, a short loop would not be vectorised
  for (int64_t i = 0; i < count; ++i) best = keys[i] > best ? keys[i] : best;
  return best;
}

template <class K>
static inline int64_t first_equal(const K* __restrict keys, K key) {
  int64_t i = 0;
  while (keys[i] != key) ++i;
  return i;
}

// The largest of a padded row, NaN if there is one.
template <class A>
static inline A row_maximum(const A* __restrict z, int64_t blocks) {
  key_t<A> best = KeyOf<A>::kLowest, any_nan = 0;
  for (int64_t i = 0; i < blocks * kBlock; ++i) {
    const key_t<A> key = order(bits_of(z[i]));
    best = key > best ? key : best;
    any_nan |= is_nan(bits_of(z[i])) ? 1 : 0;
  }
  return value_of(any_nan != 0 ? KeyOf<A>::kHighest : best);
}

// The sum of a padded row over kBlock lanes, which are then added pairwise.
template <class A>
static inline A row_sum(const A* __restrict v, int64_t blocks) {
  constexpr int64_t kVectors = kBlock * sizeof(A) / 64;
  constexpr int64_t kWidth = kBlock / kVectors;
  typedef A Vector __attribute__((vector_size(64)));
  Vector sums[kVectors] = {};
  for (int64_t b = 0; b < blocks; ++b) {
#pragma GCC unroll 4
    for (int64_t j = 0; j < kVectors; ++j) {
      Vector x;
      memcpy(&x, v + b * kBlock + j * kWidth, sizeof(x));
      sums[j] += x;
    }
  }
  A lanes[kBlock];
  memcpy(lanes, sums, sizeof(lanes));
#pragma GCC unroll 1
  for (int64_t width = kBlock / 2; width > 0; width /= 2) {
    for (int64_t l = 0; l < width; ++l) lanes[l] += lanes[l + width];
  }
  return lanes[0];
}

// NaN becomes -inf and +inf the largest finite float32.
template <class A>
MOE_INLINE A sanitized(A x) {
  const A low = x == x ? x : -infinity(A());
  return low == infinity(A()) ? A(__FLT_MAX__) : low;
}

template <class A, class T>
static inline void load(const T* __restrict source, int64_t count, A* __restrict target) {
  for (int64_t i = 0; i < count; ++i) target[i] = to_acc(source[i]);
}

// What one thread needs for one row. "padded" is a whole number of blocks.
template <class A>
struct Row {
  A* z;  // logits; the padding is -inf
  A* scores;
  A* bias;  // zeros without a bias
  key_t<A>* keys;
  key_t<A>* spare;  // a group's keys
  int64_t* candidates;
  int64_t* best;

  static int64_t bytes(int64_t padded) {
    return padded * static_cast<int64_t>(3 * sizeof(A) + 2 * sizeof(key_t<A>) + sizeof(int64_t)) +
           (padded / 16 + 16) * static_cast<int64_t>(sizeof(int64_t));
  }
  Row(void* memory, int64_t padded) {
    candidates = static_cast<int64_t*>(memory);
    z = reinterpret_cast<A*>(candidates + padded);
    scores = z + padded;
    bias = scores + padded;
    keys = reinterpret_cast<key_t<A>*>(bias + padded);
    spare = keys + padded;
    best = reinterpret_cast<int64_t*>(spare + padded);
  }
};

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

// What the softmax of a row is made of.
template <class A>
struct Softmax {
  A maximum = 0, sum = 0;
};

// z becomes e^(z - maximum).
template <class A>
static inline Softmax<A> exponentiate(A* __restrict z, int64_t blocks) {
  const A maximum = row_maximum(z, blocks);
  for (int64_t i = 0; i < blocks * kBlock; ++i) z[i] = exp(z[i] - maximum);
  return {maximum, row_sum(z, blocks)};
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

// Whether a sum of scores has underflowed; NaN has not. One that has is replaced before anything is divided by it.
MOE_INLINE bool is_tiny(float x) { return x < __FLT_MIN__; }
MOE_INLINE bool is_tiny(double x) { return x < __DBL_MIN__; }
MOE_INLINE float at_least_tiny(float x) { return is_tiny(x) ? __FLT_MIN__ : x; }
MOE_INLINE double at_least_tiny(double x) { return is_tiny(x) ? __DBL_MIN__ : x; }

MOE_INLINE float natural_log(float x) { return __builtin_logf(x); }
MOE_INLINE double natural_log(double x) { return __builtin_log(x); }

// Adds a row to p.statistics. Spoils row.z and row.scores.
template <class A>
static inline void add_statistics(const RouteParams& p, const Row<A>& row, int64_t blocks, Softmax<A> softmax,
                                  const int32_t* __restrict ids) {
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
    const A* __restrict e = row.z;
    const A sum = softmax.sum;
    for (int64_t i = 0; i < count; ++i) sums[i] += e[i] / sum;
  }
  if (z_sum == nullptr) return;
  const A lse = softmax.maximum + natural_log(softmax.sum), square = lse * lse;
  if (p.rule.nonfinite != NonFinite::kSanitize || square < infinity(A())) *z_sum += square;
}

template <class T>
static int64_t forward(const RouteParams& p, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  const int64_t count = p.num_experts, blocks = blocks_of(count), padded = blocks * kBlock;
  void* memory = aligned_alloc(64, (Row<A>::bytes(padded) + 63) / 64 * 64);
  if (memory == nullptr) return kOutOfMemory;
  const Row<A> row(memory, padded);
  for (int64_t i = 0; i < padded; ++i) row.bias[i] = p.bias != nullptr && i < count ? A(p.bias[i]) : A(0);
  const bool group_wise = p.num_groups > 1 && p.topk_groups < p.num_groups;
  const bool statistics =
      p.statistics.score_sums != nullptr || p.statistics.expert_counts != nullptr || p.statistics.z_sum != nullptr;

  int64_t bad_token = -1;
  for (int64_t t = begin; t < end && bad_token < 0; ++t) {
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
        if (bad != 0 || alive == 0) bad_token = t;
      } else if (alive == 0) {
        for (int64_t k = 0; k < p.top_k; ++k) {
          weights[k] = 0;
          ids[k] = -1;
        }
        continue;
      }
    }
    const Softmax<A> softmax = score_row(p.rule, row, blocks);
    if (group_wise) keep_best_groups(p, row);
    select(row, count, p.top_k, ids);
    weigh(p.rule, row.scores, ids, p.top_k, weights);
    if (statistics) add_statistics(p, row, blocks, softmax, ids);
  }
  free(memory);
  return bad_token;
}

}  // namespace routing

static int64_t route_forward(const RouteParams& p, int64_t begin, int64_t end) {
  switch (p.dtype) {
    case DType::kFloat32:
      return routing::forward<float>(p, begin, end);
    case DType::kBFloat16:
      return routing::forward<bf16>(p, begin, end);
    case DType::kFloat16:
      return routing::forward<fp16>(p, begin, end);
    case DType::kFloat64:
      return routing::forward<double>(p, begin, end);
  }
  return -1;
}

}  // namespace moe::cpu::MOE_ISA
