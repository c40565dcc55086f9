// The softmax of soft_mix and of its gradients, block by block. Contract: moe/soft.h.
//
// A row of logits is worked on in runs that stay in the first-level cache: converted, made weights, rounded. Sums go
// over lanes of fixed number or over tokens in their order: the bits depend neither on the instruction set nor on how
// the work is cut.
#pragma once

#include <string.h>

#include "cpu/soft/weights.h"
#include "cpu/vectorized/combine.h"
#include "cpu/vectorized/math.h"
#include "cpu/vectorized/pack.h"

namespace moe::cpu::MOE_ISA {

namespace soft {

inline constexpr int64_t kRun = 256;  // slots
// Tokens whose exponentials are summed at once, so that a column is read only once. In one set of the first-level
// cache there is room for as many rows that lie a power of two apart.
inline constexpr int64_t kTokens = 8;

MOE_INLINE int64_t smaller_of(int64_t a, int64_t b) { return a < b ? a : b; }

// body(T{}) for the type of a dtype; double where A is, and only there.
template <class A, class Body>
MOE_INLINE void with_type(DType dtype, const Body& body) {
  if constexpr (sizeof(A) == sizeof(double)) {
    body(double{});
  } else {
    switch (dtype) {
      case DType::kBFloat16:
        return body(bf16{});
      case DType::kFloat16:
        return body(fp16{});
      default:
        return body(float{});
    }
  }
}

// `count` numbers of an array from `at` on: themselves, or converted into `buffer`.
template <class A>
static inline const A* load(DType dtype, const void* data, int64_t at, int64_t count, A* __restrict buffer) {
  const A* result = buffer;
  with_type<A>(dtype, [&]<class T>(T) {
    const T* from = static_cast<const T*>(data) + at;
    if constexpr (sizeof(T) == sizeof(A)) {
      result = from;
    } else {
      for_each_in_blocks(count, [&](int64_t j) { buffer[j] = to_acc(from[j]); });
    }
  });
  return result;
}

// to[at + j] = value(j), rounded.
template <class A, class Value>
MOE_INLINE void store(DType dtype, void* data, int64_t at, int64_t count, const Value& value) {
  with_type<A>(dtype, [&]<class T>(T) {
    T* __restrict to = static_cast<T*>(data) + at;
    for_each_in_blocks(count, [&](int64_t j) { to[j] = from_acc<T>(value(j)); });
  });
}

// Rows of a block of logits are a page apart: none is fetched because of another.
MOE_INLINE void prefetch(const SoftMixParams& p, int64_t at, int64_t count) {
  const int64_t size = size_of(p.logits_dtype);
  const char* from = static_cast<const char*>(p.logits) + at * size;
  for (int64_t byte = 0; byte < count * size; byte += 64) __builtin_prefetch(from + byte);
}

template <class A>
struct Statistics {
  A* max;
  A* scale;

  Statistics(const SoftMixParams& p, int64_t sequence)
      : max(static_cast<A*>(p.statistics) + sequence * p.num_results()), scale(max + p.batch * p.num_results()) {}
};

MOE_INLINE bool is_hidden(const SoftMixParams& p, int64_t sequence, int64_t token) {
  return p.token_mask != nullptr && p.token_mask[sequence * p.num_tokens + token] == 0;
}

// Where the logits of a token begin.
MOE_INLINE int64_t logits_at(const SoftMixParams& p, int64_t sequence, int64_t token) {
  return sequence * p.logits_batch_stride + token * p.logits_stride;
}

// The largest of whole blocks of lanes, but for NaN.
template <class A>
struct Largest {
  static constexpr int64_t kLanes = 64 / sizeof(A);
  typedef A Vector __attribute__((vector_size(64)));
  Vector largest = Vector{} - infinity(A(0));

  void add(const A* values, int64_t padded) {
    for (int64_t j = 0; j < padded; j += kLanes) {
      Vector x;
      memcpy(&x, values + j, sizeof(x));
      largest = x > largest ? x : largest;
    }
  }
  A total() const {
    A result = largest[0];
    for (int64_t l = 1; l < kLanes; ++l) result = largest[l] > result ? largest[l] : result;
    return result;
  }
};

// Max and scale of a row of logits, over its slots. Exponentials are left in `kept`, if it is given: whole blocks of
// lanes, what is missing being 0.
template <class A>
static inline void row_statistics(const SoftMixParams& p, int64_t at, A* max, A* scale, A* kept) {
  using Sum = combining::Dot<A>;
  alignas(64) A buffer[kRun], exponentials[kRun];
  const auto for_runs = [&](const auto& body) __attribute__((always_inline)) {
    for (int64_t slot = 0; slot < p.num_slots; slot += kRun) {
      const int64_t count = smaller_of(kRun, p.num_slots - slot);
      const int64_t padded = (count + Sum::kLanes - 1) / Sum::kLanes * Sum::kLanes;
      const A* run = load(p.logits_dtype, p.logits, at + slot, count, buffer);
      if (padded > count) {
        if (run != buffer) memcpy(buffer, run, count * sizeof(A));
        for (int64_t j = count; j < padded; ++j) buffer[j] = -infinity(A(0));
        run = buffer;
      }
      body(slot, run, padded);
    }
  };
  Largest<A> largest;
  for_runs([&](int64_t, const A* run, int64_t padded) { largest.add(run, padded); });
  *max = largest.total();
  Sum sum;
  for_runs([&, base = *max](int64_t slot, const A* __restrict run, int64_t padded) {
    A* __restrict to = kept != nullptr ? kept + slot : exponentials;
    for_each_in_blocks(padded, [&](int64_t j) { to[j] = exp_of_negative(run[j] - base); });
    sum.add(to, padded);
  });
  *scale = A(1) / sum.total();
}

// Adds some tokens to the maxima and sums of `count` slots. A sum goes by the maximum so far; 0 stands in for a maximum
// of -inf, from which nothing could be subtracted.
template <class A>
static inline void add_tokens(const A* const* rows, int64_t tokens, int64_t count, A* __restrict max,
                              A* __restrict sum) {
  alignas(64) A base[kRun];
  for_each_in_blocks(count, [&](int64_t j) { base[j] = max[j]; });
  for (int64_t i = 0; i < tokens; ++i) {
    const A* __restrict row = rows[i];
    for_each_in_blocks(count, [&](int64_t j) { base[j] = row[j] > base[j] ? row[j] : base[j]; });
  }
  for_each_in_blocks(count, [&](int64_t j) {
    const A top = base[j];
    base[j] = top == -infinity(A(0)) ? A(0) : top;
    sum[j] *= exp_of_negative(max[j] - base[j]);
    max[j] = top;
  });
  for (int64_t i = 0; i < tokens; ++i) {
    const A* __restrict row = rows[i];
    for_each_in_blocks(count, [&](int64_t j) { sum[j] += exp_of_negative(row[j] - base[j]); });
  }
}

// Over the tokens, for slots [begin, end).
template <class A>
static void columns_statistics(const SoftMixParams& p, int64_t sequence, int64_t begin, int64_t end) {
  const Statistics<A> statistics(p, sequence);
  alignas(64) A buffers[kTokens][kRun];
  alignas(64) A sum[kRun];
  for (int64_t slot = begin; slot < end; slot += kRun) {
    const int64_t count = smaller_of(kRun, end - slot);
    A* max = statistics.max + slot;
    for (int64_t j = 0; j < count; ++j) max[j] = -infinity(A(0)), sum[j] = A(0);
    const A* rows[kTokens];
    int64_t waiting = 0;
    bool any = false;
    for (int64_t token = 0; token < p.num_tokens; ++token) {
      if (is_hidden(p, sequence, token)) continue;
      any = true;
      const int64_t at = logits_at(p, sequence, token) + slot;
      if (token + kTokens < p.num_tokens) prefetch(p, at + kTokens * p.logits_stride, count);
      rows[waiting] = load(p.logits_dtype, p.logits, at, count, buffers[waiting]);
      if (++waiting == kTokens) add_tokens(rows, kTokens, count, max, sum), waiting = 0;
    }
    if (waiting > 0) add_tokens(rows, waiting, count, max, sum);
    // Of -inf alone the sum is 0; the weights are NaN by the maximum.
    for (int64_t j = 0; j < count; ++j) statistics.scale[slot + j] = any ? A(1) / sum[j] : A(0);
    for (int64_t j = 0; j < count; ++j) max[j] = any ? max[j] : A(0);
  }
}

// Of one token and `count` slots, by the statistics of slots (kBySlot) or of the token.
template <bool kBySlot, class A>
static inline void weigh(const A* __restrict logits, const A* __restrict max, const A* __restrict scale, int64_t count,
                         A* __restrict weights) {
  for_each_in_blocks(count, [&](int64_t j) {
    weights[j] = exp_of_negative(logits[j] - max[kBySlot ? j : 0]) * scale[kBySlot ? j : 0];
  });
}

template <bool kDispatch, class A>
static void weights(const SoftMixParams& p, const SoftWeights& block) {
  const Statistics<A> statistics(p, block.sequence);
  const A* deltas = static_cast<const A*>(block.deltas) + block.sequence * p.num_results();
  alignas(64) A buffer[kRun], run[kRun];
  for (int64_t i = 0; i < block.num_tokens; ++i) {
    const int64_t token = block.token0 + i;
    const bool hidden = is_hidden(p, block.sequence, token);
    for (int64_t j = 0; j < block.num_slots; j += kRun) {
      const int64_t slot = block.slot0 + j, count = smaller_of(kRun, block.num_slots - j);
      const int64_t result = kDispatch ? slot : token;
      if (hidden) {
        for (int64_t l = 0; l < count; ++l) run[l] = A(0);
      } else {
        const int64_t at = logits_at(p, block.sequence, token) + slot;
        if (i + 1 < block.num_tokens) prefetch(p, at + p.logits_stride, count);
        weigh<kDispatch>(load(p.logits_dtype, p.logits, at, count, buffer), statistics.max + result,
                         statistics.scale + result, count, run);
      }
      if (block.weights != nullptr) {
        store<A>(p.dtype, block.weights, i * block.weights_stride + j, count, [&](int64_t l) { return run[l]; });
      }
      if (block.grad_logits != nullptr) {
        const A* __restrict dots = static_cast<const A*>(block.dots) + i * block.num_slots + j;
        const A* __restrict delta = deltas + result;
        // Also zeros times what is not finite are zero.
        store<A>(p.logits_dtype, block.grad_logits, i * p.num_slots + j, count,
                 [&](int64_t l) { return hidden ? A(0) : run[l] * (dots[l] - delta[kDispatch ? l : 0]); });
      }
    }
  }
}

// <grad_mixed, mixed> for results [begin, end) of all sequences together.
template <class T>
static void deltas(const SoftMixBackwardParams& p, int64_t begin, int64_t end, acc_t<T>* out) {
  using Dot = combining::Dot<acc_t<T>>;
  const int64_t results = p.forward.num_results(), width = p.forward.width;
  alignas(64) acc_t<T> products[kRun];
  for (int64_t n = begin; n < end; ++n) {
    const T* grad = static_cast<const T*>(p.grad_mixed) + n / results * p.grad_mixed_batch_stride +
                    n % results * p.grad_mixed_stride;
    const T* mixed = static_cast<const T*>(p.forward.mixed) + n * width;
    Dot dot;
    for (int64_t at = 0; at < width; at += kRun) {
      const int64_t count = smaller_of(kRun, width - at),
                    padded = (count + Dot::kLanes - 1) / Dot::kLanes * Dot::kLanes;
      combining::multiply_rows(grad + at, mixed + at, count, products);
      for (int64_t j = count; j < padded; ++j) products[j] = 0;
      dot.add(products, padded);
    }
    out[n] = dot.total();
  }
}

// Statistics and weights of tokens with all their slots, one after the other.
template <class A>
static void rows_forward(const SoftMixParams& p, const SoftWeights& block) {
  constexpr int64_t kKept = 2048;
  alignas(64) A kept[kKept];
  const bool keeps = p.num_slots <= kKept;
  const Statistics<A> statistics(p, block.sequence);
  for (int64_t i = 0; i < block.num_tokens; ++i) {
    const int64_t token = block.token0 + i, at = i * block.weights_stride;
    if (is_hidden(p, block.sequence, token) || p.num_slots == 0) {
      statistics.max[token] = statistics.scale[token] = A(0);
      store<A>(p.dtype, block.weights, at, p.num_slots, [](int64_t) { return A(0); });
      continue;
    }
    row_statistics(p, logits_at(p, block.sequence, token), statistics.max + token, statistics.scale + token,
                   keeps ? kept : nullptr);
    if (keeps) {
      const A scale = statistics.scale[token];
      store<A>(p.dtype, block.weights, at, p.num_slots, [&](int64_t j) { return kept[j] * scale; });
    } else {
      SoftWeights row = block;
      row.token0 = token;
      row.num_tokens = 1;
      row.weights = static_cast<char*>(block.weights) + at * size_of(p.dtype);
      weights<false, A>(p, row);
    }
  }
}

template <class A>
static void forward(const SoftMixParams& p, const SoftWeights& block) {
  if (!p.dispatch) return rows_forward<A>(p, block);
  columns_statistics<A>(p, block.sequence, block.slot0, block.slot0 + block.num_slots);
  weights<true, A>(p, block);
}

template <class A>
static void weights(const SoftMixParams& p, const SoftWeights& block) {
  p.dispatch ? weights<true, A>(p, block) : weights<false, A>(p, block);
}

}  // namespace soft

static void soft_forward(const SoftMixParams& p, const SoftWeights& block) {
  if (p.dtype == DType::kFloat64) return soft::forward<double>(p, block);
  soft::forward<float>(p, block);
}

static void soft_weights(const SoftMixParams& p, const SoftWeights& block) {
  if (p.dtype == DType::kFloat64) return soft::weights<double>(p, block);
  soft::weights<float>(p, block);
}

static void soft_deltas(const SoftMixBackwardParams& p, int64_t begin, int64_t end, void* out) {
  switch (p.forward.dtype) {
    case DType::kFloat32:
      return soft::deltas<float>(p, begin, end, static_cast<float*>(out));
    case DType::kBFloat16:
      return soft::deltas<bf16>(p, begin, end, static_cast<float*>(out));
    case DType::kFloat16:
      return soft::deltas<fp16>(p, begin, end, static_cast<float*>(out));
    case DType::kFloat64:
      return soft::deltas<double>(p, begin, end, static_cast<double*>(out));
  }
}

}  // namespace moe::cpu::MOE_ISA
