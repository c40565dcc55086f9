// What both directions of route know about a row of logits: the order of experts, sums and the softmax, and the memory
// that one thread works in.
//
// Experts are compared as integers whose order is that of the floats, NaN on top and -0 equal to 0, so every maximum
// is exact, vectorises, and breaks ties by the lower index. Sums run over a fixed number of lanes. So results depend
// neither on the instruction set nor on how tokens are cut into ranges.
#pragma once

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "cpu/vectorized/route_lanes.h"
#include "moe/route.h"

namespace moe::cpu::MOE_ISA {

namespace routing {

// For the steps of a tile of rows: the compiler does better with each as a function of its own.
#define MOE_NOINLINE __attribute__((noinline))

// Choices of a token that a tile of rows serves.
inline constexpr int64_t kMostChosen = 16;

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

// The sum of all lanes: the upper half is added to the lower one, again and again.
template <class A, int kBytes>
struct LaneSum {
  typedef A Lanes __attribute__((vector_size(kBytes)));
  typedef A Half __attribute__((vector_size(kBytes / 2)));
  static __attribute__((always_inline)) inline A of(Lanes all) {
    Half halves[2];
    memcpy(halves, &all, sizeof(all));
    return LaneSum<A, kBytes / 2>::of(halves[0] + halves[1]);
  }
};
template <class A>
struct LaneSum<A, 2 * sizeof(A)> {
  typedef A Lanes __attribute__((vector_size(2 * sizeof(A))));
  static __attribute__((always_inline)) inline A of(Lanes both) { return both[0] + both[1]; }
};

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
#pragma GCC unroll 2
  for (int64_t width = kVectors / 2; width > 0; width /= 2) {
    for (int64_t j = 0; j < width; ++j) sums[j] += sums[j + width];
  }
  return LaneSum<A, 64>::of(sums[0]);
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

// Memory for one call, 64-byte aligned.
class Memory {
 public:
  explicit Memory(int64_t bytes) : data_(aligned_alloc(64, static_cast<size_t>((bytes + 63) / 64 * 64))) {}
  ~Memory() { free(data_); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  char* data() const { return static_cast<char*>(data_); }

 private:
  void* data_;
};

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

// e^x for |x| <= 64: the same bits as exp, which need no care at the ends of the range.
MOE_INLINE float exp_of_moderate(float x) {
  const float magic = 12582912.0f;
  const float shifted = x * 1.44269504f + magic;
  const float n = shifted - magic;
#ifdef __FMA__  // the product is exact, so the difference is rounded once in either case
  const float r = __builtin_fmaf(n, -0.693359375f, x) - n * -2.12194440e-4f;
#else
  const float r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
#endif
  float q = 1.39463681e-3f + 1.99187838e-4f * r;
  q = 8.33326392e-3f + q * r;
  q = 4.16662656e-2f + q * r;
  q = 1.66666672e-1f + q * r;
  q = 0.5f + q * r;
  const float p = 1.0f + (r + (r * r) * q);
  return float_of(
      static_cast<int32_t>(static_cast<uint32_t>(bits_of(p)) + (static_cast<uint32_t>(bits_of(shifted)) << 23)));
}
inline constexpr float kModerate = 32.0f;  // logits that are no larger differ by at most 64

MOE_INLINE bool is_finite(float x) { return x - x == 0.0f; }

// The largest of a padded row without NaN.
static inline float plain_maximum(const float* __restrict z, int64_t padded) {
  Floats best = load_lanes(z);
  for (int64_t i = kWidth; i < padded; i += kWidth) best = larger(load_lanes(z + i), best);
  return reduced(best, [](Floats a, Floats b) { return larger(a, b); });
}

// The largest magnitude of a row, and NaN above infinity, as bits.
static inline int32_t magnitude_bits(const float* __restrict z, int64_t count) {
  int32_t magnitude = 0;
  for (int64_t i = 0; i < count; ++i) {
    const int32_t bits = bits_of(z[i]) & INT32_MAX;
    magnitude = bits > magnitude ? bits : magnitude;
  }
  return magnitude;
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

// Whether a sum of scores has underflowed; NaN has not. One that has is replaced before anything is divided by it.
MOE_INLINE bool is_tiny(float x) { return x < __FLT_MIN__; }
MOE_INLINE bool is_tiny(double x) { return x < __DBL_MIN__; }
MOE_INLINE float at_least_tiny(float x) { return is_tiny(x) ? __FLT_MIN__ : x; }
MOE_INLINE double at_least_tiny(double x) { return is_tiny(x) ? __DBL_MIN__ : x; }

MOE_INLINE float natural_log(float x) { return __builtin_logf(x); }
MOE_INLINE double natural_log(double x) { return __builtin_log(x); }

}  // namespace routing

}  // namespace moe::cpu::MOE_ISA
