// Products of small tiles: what all tensor core instructions come down to, whatever their fragments look like.
//
// A tile of A is rows of kTileK floats, a tile of B is rows (k) of kLdb floats, the accumulators are rows of kWidth
// floats. Products of two elements of up to 11 significant bits are exact in fp32.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "core/gpu.h"

#if defined(__FMA__)
#include <immintrin.h>
#endif

namespace vgpu {

constexpr int kTileK = 32;     // floats from one row of A to the next; no instruction has a larger k
constexpr int kTileRows = 16;  // of A that one warp multiplies at a time

template <int kWidth>
struct VectorOf {
  typedef float Type __attribute__((vector_size(4 * kWidth), aligned(4 * kWidth)));
};
using Float8 = VectorOf<8>::Type;
using Float16 = VectorOf<16>::Type;

// The product is not rounded, the sum is.
inline Float8 multiply_add(Float8 a, Float8 b, Float8 c) {
#if defined(__FMA__)
  return reinterpret_cast<Float8>(
      _mm256_fmadd_ps(reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b), reinterpret_cast<__m256>(c)));
#else
  for (int i = 0; i < 8; ++i) c[i] = std::fma(a[i], b[i], c[i]);
  return c;
#endif
}

#if defined(__AVX512F__)
inline Float16 multiply_add(Float16 a, Float16 b, Float16 c) {
  return reinterpret_cast<Float16>(
      _mm512_fmadd_ps(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b), reinterpret_cast<__m512>(c)));
}
#endif

// A float that a later rounding to a format of at most 22 significant bits rounds as it would round x itself.
inline float round_to_odd(double x) {
  const float nearest = static_cast<float>(x);
  if (static_cast<double>(nearest) == x || x != x || std::isinf(nearest)) return nearest;
  uint32_t bits = std::bit_cast<uint32_t>(nearest);
  if (std::fabs(static_cast<double>(nearest)) > std::fabs(x)) --bits;
  return std::bit_cast<float>(bits | 1);
}

inline float round_to_zero(double x) {
  const float nearest = static_cast<float>(x);
  if (!(std::fabs(static_cast<double>(nearest)) > std::fabs(x)) || std::isinf(x)) return nearest;
  return std::bit_cast<float>(std::bit_cast<uint32_t>(nearest) - 1);
}

// As many sums as the host's registers hold.
#if defined(__AVX512F__)
constexpr int kStripWidth = 16;
constexpr int kRowsAtOnce = 16;
#else
constexpr int kStripWidth = 8;
constexpr int kRowsAtOnce = 8;
#endif

// One product after the other, k ascending, each sum rounded to fp32.
template <int kRows, int kWidth, int kLdb>
inline void multiply_sequential(const float* a, const float* b, int k, float* accumulators) {
  using Vector = typename VectorOf<kWidth>::Type;
  constexpr int kChunk = kRows < kRowsAtOnce ? kRows : kRowsAtOnce;
  const Vector nan = Vector{} + std::bit_cast<float>(0x7fffffffu);
  for (int first = 0; first < kRows; first += kChunk) {
    const float* rows = a + first * kTileK;
    float* sums = accumulators + first * kWidth;
    Vector sum[kChunk];
    for (int r = 0; r < kChunk; ++r) sum[r] = *reinterpret_cast<const Vector*>(sums + r * kWidth);
    for (int i = 0; i < k; ++i) {
      const Vector y = *reinterpret_cast<const Vector*>(b + i * kLdb);
#pragma GCC unroll 16
      for (int r = 0; r < kChunk; ++r) sum[r] = multiply_add(Vector{} + rows[r * kTileK + i], y, sum[r]);
    }
    for (int r = 0; r < kChunk; ++r) {
      *reinterpret_cast<Vector*>(sums + r * kWidth) = sum[r] != sum[r] ? nan : sum[r];
    }
  }
}

// Summed in double and rounded once; `odd`: so that the accumulator's own, narrower format decides the rounding.
template <int kRows, int kWidth, int kLdb>
inline void multiply_exact(const float* a, const float* b, int k, float* accumulators, bool odd) {
  for (int r = 0; r < kRows; ++r) {
    double sum[kWidth];
    for (int c = 0; c < kWidth; ++c) sum[c] = accumulators[r * kWidth + c];
    for (int i = 0; i < k; ++i) {
      const double x = a[r * kTileK + i];
      for (int c = 0; c < kWidth; ++c) sum[c] += x * static_cast<double>(b[i * kLdb + c]);
    }
    for (int c = 0; c < kWidth; ++c) {
      const float result = odd ? round_to_odd(sum[c]) : static_cast<float>(sum[c]);
      accumulators[r * kWidth + c] = result != result ? std::bit_cast<float>(0x7fffffffu) : result;
    }
  }
}

// As tensor cores are known to add: the accumulator and all products of the instruction are aligned to the largest
// exponent among them, cut off `fraction` bits below it, added exactly, and the sum is cut off to fp32. How many bits
// are kept, and how many products are added at a time, differs between chips: this is an approximation.
template <int kRows, int kWidth, int kLdb>
inline void multiply_truncating(const float* a, const float* b, int k, float* accumulators, int fraction) {
  constexpr uint64_t kExponent = 0x7ffull << 52;
  const double bits_kept = std::ldexp(1.0, fraction);
  for (int r = 0; r < kRows; ++r) {
    double terms[kTileK + 1][kWidth];
    uint64_t largest[kWidth];
    for (int c = 0; c < kWidth; ++c) {
      terms[k][c] = accumulators[r * kWidth + c];
      largest[c] = std::bit_cast<uint64_t>(terms[k][c]) & kExponent;
    }
    for (int i = 0; i < k; ++i) {
      const double x = a[r * kTileK + i];
      for (int c = 0; c < kWidth; ++c) {
        terms[i][c] = x * static_cast<double>(b[i * kLdb + c]);
        const uint64_t exponent = std::bit_cast<uint64_t>(terms[i][c]) & kExponent;
        largest[c] = exponent > largest[c] ? exponent : largest[c];
      }
    }
    for (int c = 0; c < kWidth; ++c) {
      double sum = 0;
      if (largest[c] == kExponent) {
        for (int i = 0; i <= k; ++i) sum += terms[i][c];
      } else if (largest[c] != 0) {
        const double last_place = std::bit_cast<double>(largest[c]) / bits_kept;
        const double scale = 1.0 / last_place;
        for (int i = 0; i <= k; ++i) sum += std::trunc(terms[i][c] * scale);
        sum *= last_place;
      }
      const float result = round_to_zero(sum);
      accumulators[r * kWidth + c] = result != result ? std::bit_cast<float>(0x7fffffffu) : result;
    }
  }
}

struct ProductRules {
  Accumulate accumulate = Accumulate::kSequential;
  bool half_accumulators = false;
  int fraction = 25;  // of kTruncate
};

template <int kRows, int kWidth, int kLdb>
inline void multiply(const ProductRules& rules, const float* a, const float* b, int k, float* accumulators) {
  switch (rules.accumulate) {
    case Accumulate::kSequential:
      multiply_sequential<kRows, kWidth, kLdb>(a, b, k, accumulators);
      break;
    case Accumulate::kExact:
      multiply_exact<kRows, kWidth, kLdb>(a, b, k, accumulators, rules.half_accumulators);
      break;
    case Accumulate::kTruncate:
      multiply_truncating<kRows, kWidth, kLdb>(a, b, k, accumulators, rules.fraction);
      break;
  }
}

}  // namespace vgpu
