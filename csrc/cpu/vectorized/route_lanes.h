// Vectors as wide as the instruction set has them, for the steps of route that work across the lanes of a row.
#pragma once

#include "cpu/vectorized/math.h"

namespace moe::cpu::MOE_ISA {

namespace routing {

#if defined(__AVX512F__)
inline constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
inline constexpr int kVectorBytes = 32;
#else
inline constexpr int kVectorBytes = 16;
#endif
inline constexpr int kWidth = kVectorBytes / 4;
typedef float Floats __attribute__((vector_size(kVectorBytes)));
typedef int32_t Ints __attribute__((vector_size(kVectorBytes)));

MOE_INLINE Floats load_lanes(const float* from) {
  Floats v;
  memcpy(&v, from, sizeof(v));
  return v;
}
MOE_INLINE void store_lanes(Floats v, float* to) { memcpy(to, &v, sizeof(v)); }

MOE_INLINE Floats everywhere(float x) { return x - Floats{}; }
MOE_INLINE Ints everywhere(int32_t x) { return x - Ints{}; }

// Integers in the order of the floats; -0 is equal to 0.
MOE_INLINE Ints ordered(Floats x) {
  const Ints bits = (Ints)(x + 0.0f);
  return bits ^ ((bits >> 31) & INT32_MAX);
}

// counts + 1 where a > b.
template <class V>
MOE_INLINE Ints counted(V a, V b, Ints counts) {
  return a > b ? counts + 1 : counts;
}

MOE_INLINE Floats larger(Floats a, Floats b) { return a > b ? a : b; }
MOE_INLINE Floats smaller(Floats a, Floats b) { return a < b ? a : b; }

// Lane l of the result is what function(l) names: lanes of a, then of b.
template <class Function>
MOE_INLINE Floats shuffled(Floats a, Floats b, const Function& function) {
  Ints from;
#pragma GCC unroll 16
  for (int l = 0; l < kWidth; ++l) from[l] = function(l);
  return __builtin_shuffle(a, b, from);
}

template <int kHalf = kWidth / 2, class Operation>
MOE_INLINE float reduced(Floats v, const Operation& operation) {
  v = operation(v, shuffled(v, v, [](int l) { return l ^ kHalf; }));
  if constexpr (kHalf > 1) {
    return reduced<kHalf / 2>(v, operation);
  } else {
    return v[0];
  }
}

// ranks[l] = how many of kLanes keys come before the l-th: the larger ones, and the equal ones in front of it.
template <int kLanes>
MOE_INLINE void rank_keys(const int32_t* __restrict keys, int32_t* __restrict ranks) {
  constexpr int kVectors = kLanes / kWidth;
  // To those behind lane l, its key comes first if it is larger than one less than theirs.
  Ints mine[kVectors], before[kVectors] = {};
  memcpy(mine, keys, sizeof(mine));
#pragma GCC unroll 8
  for (int v = 0; v < kVectors; ++v) mine[v] -= 1;
#pragma GCC unroll 32
  for (int l = 0; l < kLanes; ++l) {
    const Ints other = everywhere(keys[l]);
    Ints own = {};
    own[l % kWidth] = 1;
    mine[l / kWidth] += own;
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) before[v] = counted(other, mine[v], before[v]);
  }
  memcpy(ranks, before, sizeof(before));
}

// Each lane's largest and second largest so far.
struct TopTwo {
  Floats first, second;

  __attribute__((always_inline)) void add(Floats x) {
    second = larger(second, smaller(first, x));
    first = larger(first, x);
  }
};

MOE_INLINE TopTwo merged(TopTwo a, TopTwo b) {
  return {larger(a.first, b.first), larger(smaller(a.first, b.first), larger(a.second, b.second))};
}

// Lanes of a where bit kHalf of their number is 0, lanes of b elsewhere, each merged with the lane kHalf away.
template <int kHalf>
MOE_INLINE TopTwo folded(TopTwo a, TopTwo b) {
  const auto near = [](int l) { return (l & kHalf) == 0 ? l : kWidth + l; };
  const auto far = [](int l) { return (l & kHalf) == 0 ? l + kHalf : kWidth + l - kHalf; };
  return merged({shuffled(a.first, b.first, near), shuffled(a.second, b.second, near)},
                {shuffled(a.first, b.first, far), shuffled(a.second, b.second, far)});
}

// Halves kCount vectors of lanes down to the best two of each, kCount a power of two: those of vector i are then in
// lane place_of_fold<kCount>(i) of all vectors that are left.
template <int kCount, int kHalf = kWidth / 2>
MOE_INLINE void fold(TopTwo* all) {
  if constexpr (kHalf > 0) {
#pragma GCC unroll 8
    for (int i = 0; i < (kCount > 1 ? kCount / 2 : 1); ++i) {
      all[i] = folded<kHalf>(all[kCount > 1 ? 2 * i : 0], all[kCount > 1 ? 2 * i + 1 : 0]);
    }
    fold<(kCount > 1 ? kCount / 2 : 1), kHalf / 2>(all);
  }
}
MOE_INLINE int place_of_fold(int i) {
  int lane = 0, half = kWidth / 2;
  for (; half > 0; half /= 2, i /= 2) lane += (i & 1) * half;
  return lane + i * kWidth;
}

}  // namespace routing

}  // namespace moe::cpu::MOE_ISA
