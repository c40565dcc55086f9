// Floats as sums of bfloat16, and panels of them in the layout of AMX tiles.
//
//   float32 = high + middle + low      float16 = high + middle      both exactly
//
// A float32 has 24 significant bits. high is the nearest bfloat16, so 16 bits are left at most; middle is the upper
// eight of what is left, low the rest. The sign of middle is independent of the number's, so what products of the small
// parts are left out does not add up to a bias.
//
// Exceptions to "exactly": parts below 2^-126 are zero to the tiles, so a float32 is kept to within 2^-126; and of a
// number that is not finite or rounds to an infinite bfloat16, at least one part is NaN.
//
// A step is 32 of k: the smallest piece that a tile holds. Within a step k is paired with k + 16, because then a pair
// is a shift and a merge of two registers; both operands do the same, and a sum does not mind.
//   P panel: [outer][step][part][16 pairs][2]     Q panel: [step][part][16 pairs][width][2]
#pragma once

#include <immintrin.h>

#include <cstring>

#include "cpu/avx512/vector.h"
#include "cpu/vectorized/pack.h"

namespace moe::cpu::MOE_ISA {

static constexpr int64_t kSplitStep = 32;
static constexpr int64_t kSplitPairs = 16;

// The parts of one number, for the arithmetic of sizes: no panel holds them side by side.
template <int kParts>
struct SplitNumber {
  bf16 parts[kParts];
};

template <int kParts>
struct SplitPairs {
  __m512i parts[kParts];  // sixteen pairs (first, second)
};

MOE_INLINE __m512i pair_upper_halves(__m512 first, __m512 second) {
  const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
  const __m512i low = _mm512_srli_epi32(_mm512_castps_si512(first), 16);
  return _mm512_ternarylogic_epi32(low, _mm512_castps_si512(second), upper, 0xf8);  // low | (second & upper)
}

MOE_INLINE __m512 upper_half(__m512 x) {
  return _mm512_castsi512_ps(
      _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
}

// To the nearest bfloat16, ties away from zero.
MOE_INLINE __m512 nearest_bf16(__m512 x) {
  return upper_half(_mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(x), _mm512_set1_epi32(0x8000))));
}

template <int kParts>
MOE_INLINE SplitPairs<kParts> split(__m512 first, __m512 second) {
  static_assert(kParts == 2 || kParts == 3);
  SplitPairs<kParts> result;
  const __m512 high_first = nearest_bf16(first), high_second = nearest_bf16(second);
  result.parts[0] = pair_upper_halves(high_first, high_second);
  first = _mm512_sub_ps(first, high_first);
  second = _mm512_sub_ps(second, high_second);
  result.parts[1] = pair_upper_halves(first, second);
  if constexpr (kParts == 3) {
    result.parts[2] =
        pair_upper_halves(_mm512_sub_ps(first, upper_half(first)), _mm512_sub_ps(second, upper_half(second)));
  }
  return result;
}

// Up to sixteen neighbours, zero past `count`.
MOE_INLINE __m512 load_neighbours(const float* from, int64_t count) {
  if (count >= 16) return _mm512_loadu_ps(from);
  return _mm512_maskz_loadu_ps(static_cast<__mmask16>(count > 0 ? (1u << count) - 1 : 0), from);
}
MOE_INLINE __m512 load_neighbours(const fp16* from, int64_t count) {
  if (count >= 16) return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(static_cast<__mmask16>(count > 0 ? (1u << count) - 1 : 0), from));
}

template <class T>
static inline __m512 gather_neighbours(const Source<T>& source, int64_t outer, int64_t k, int64_t count, bool along_k) {
  alignas(64) float values[16] = {};
  for (int64_t i = 0; i < count && i < 16; ++i) {
    values[i] = to_acc(*source.at(outer + (along_k ? 0 : i), k + (along_k ? i : 0)));
  }
  return _mm512_load_ps(values);
}

// Sixteen of k from k on, at one outer position.
template <class T>
MOE_INLINE __m512 load_along_k(const Source<T>& source, int64_t outer, int64_t k, int64_t count) {
  if (count <= 0) return _mm512_setzero_ps();
  if (source.k_contiguous()) return load_neighbours(source.at(outer, k), count);
  return gather_neighbours(source, outer, k, count, true);
}

// Sixteen outer positions from `outer` on, at one k; zero where k is past its end.
template <class T>
MOE_INLINE __m512 load_along_outer(const Source<T>& source, int64_t outer, int64_t k, int64_t count, int64_t k_end) {
  if (count <= 0 || k >= k_end) return _mm512_setzero_ps();
  if (source.outer_contiguous()) return load_neighbours(source.at(outer, k), count);
  return gather_neighbours(source, outer, k, count, false);
}

// One row of a P panel, one step of k from `from` on.
template <class T, int kParts>
MOE_INLINE void split_row(const T* from, int64_t count, SplitNumber<kParts>* target) {
  const auto pairs = split<kParts>(load_neighbours(from, count), load_neighbours(from + 16, count - 16));
#pragma GCC unroll 3
  for (int part = 0; part < kParts; ++part) {
    _mm512_storeu_si512(reinterpret_cast<char*>(target) + part * 64, pairs.parts[part]);
  }
}

template <class T, int kParts>
static void split_p_from_rows(const Source<T>& source, int64_t outer0, int64_t outer, int64_t k0, int64_t k,
                              int64_t padded_k, SplitNumber<kParts>* target, int64_t ld) {
  constexpr int64_t kAhead = 8 * 64 / sizeof(T);
  for (int64_t i0 = 0; i0 < outer; i0 += kStreams) {
    const int64_t rows = outer - i0 < kStreams ? outer - i0 : kStreams;
    const T* from[kStreams];
    for (int64_t r = 0; r < rows; ++r) from[r] = source.at(outer0 + i0 + r, k0);
    for (int64_t kk = 0; kk < padded_k; kk += kSplitStep) {
      for (int64_t r = 0; r < rows; ++r) {
        const char* ahead = reinterpret_cast<const char*>(from[r] + kk + kAhead);
        __builtin_prefetch(ahead);
        if constexpr (sizeof(T) == 4) __builtin_prefetch(ahead + 64);
        split_row<T, kParts>(from[r] + kk, k - kk, target + (i0 + r) * ld + kk);
      }
    }
  }
}

// From rows that run along the outer dimension: pairs first, then their transpose.
template <class T, int kParts>
static void split_p_from_columns(const Source<T>& source, int64_t outer0, int64_t outer, int64_t padded_outer,
                                 int64_t k0, int64_t k, int64_t padded_k, SplitNumber<kParts>* target, int64_t ld) {
  alignas(64) float pairs[kParts][kSplitPairs][16];
  for (int64_t kk = 0; kk < padded_k; kk += kSplitStep) {
    for (int64_t i0 = 0; i0 < padded_outer; i0 += 16) {
      for (int64_t p = 0; p < kSplitPairs; ++p) {
        const int64_t at = k0 + kk + p;
        const auto both = split<kParts>(load_along_outer(source, outer0 + i0, at, outer - i0, k0 + k),
                                        load_along_outer(source, outer0 + i0, at + 16, outer - i0, k0 + k));
        for (int part = 0; part < kParts; ++part) _mm512_store_si512(pairs[part][p], both.parts[part]);
      }
      const int64_t ld_lanes = ld * sizeof(SplitNumber<kParts>) / sizeof(float);
      for (int part = 0; part < kParts; ++part) {
        transpose16(pairs[part][0], 16, reinterpret_cast<float*>(target + i0 * ld + kk) + part * 16, ld_lanes);
      }
    }
  }
}

// From rows that run along k: the transpose of 16 rows of 16 pairs at a time.
template <class T, int kParts>
static void split_q_from_rows(const Source<T>& source, int64_t outer0, int64_t outer, int64_t k0, int64_t k,
                              int64_t padded_k, int64_t width, SplitNumber<kParts>* target) {
  alignas(64) float rows[kParts][16][kSplitPairs];
  for (int64_t j0 = 0; j0 < width; j0 += 16) {
    const int64_t count = outer - j0 < 16 ? outer - j0 : 16;
    for (int64_t j = count > 0 ? count : 0; j < 16; ++j) {
      for (int part = 0; part < kParts; ++part) memset(rows[part][j], 0, 64);
    }
    for (int64_t kk = 0; kk < padded_k; kk += kSplitStep) {
      for (int64_t j = 0; j < count; ++j) {
        const auto both = split<kParts>(load_along_k(source, outer0 + j0 + j, k0 + kk, k - kk),
                                        load_along_k(source, outer0 + j0 + j, k0 + kk + 16, k - kk - 16));
        for (int part = 0; part < kParts; ++part) _mm512_store_si512(rows[part][j], both.parts[part]);
      }
      float* out = reinterpret_cast<float*>(target + kk * width) + j0;
      for (int part = 0; part < kParts; ++part) {
        transpose16(rows[part][0], 16, out + part * kSplitPairs * width, width);
      }
    }
  }
}

// One step of a Q panel, from rows that run along the outer dimension.
template <class T, int kParts>
MOE_INLINE void split_q_step(const Source<T>& source, int64_t outer0, int64_t outer, int64_t k_at, int64_t k_end,
                             int64_t pair, int64_t width, SplitNumber<kParts>* target) {
  float* out = reinterpret_cast<float*>(target) + pair * width;
  for (int64_t j = 0; j < width; j += 16) {
    const auto both = split<kParts>(load_along_outer(source, outer0 + j, k_at, outer - j, k_end),
                                    load_along_outer(source, outer0 + j, k_at + 16, outer - j, k_end));
#pragma GCC unroll 3
    for (int part = 0; part < kParts; ++part) {
      _mm512_storeu_si512(out + part * kSplitPairs * width + j, both.parts[part]);
    }
  }
}

// Packing for an engine of split numbers whose panels P have kPRows rows and Q kQColumns columns at most.
template <int kParts, int64_t kPRows, int64_t kQColumns>
struct SplitPacking {
  using Packed = SplitNumber<kParts>;
  using Acc = float;
  static constexpr bool kKMajorP = false;
  static constexpr int64_t kStep = kSplitStep;
  // Rows of a P panel are an odd number of lines apart, and start at lines.
  static constexpr int64_t kPad = kSplitStep;

  template <class T>
  static void pack_p(const Source<T>& source, int64_t outer0, int64_t outer, int64_t k0, int64_t k, int64_t padded_k,
                     Packed* target, int64_t ld, bool) {
    if (source.k_contiguous()) {
      split_p_from_rows(source, outer0, outer, k0, k, padded_k, target, ld);
      for (int64_t i = outer; i < kPRows; ++i)
        memset(static_cast<void*>(target + i * ld), 0, padded_k * sizeof(Packed));
    } else {
      split_p_from_columns(source, outer0, outer, kPRows, k0, k, padded_k, target, ld);
    }
  }

  template <class T>
  static void pack_q(const Source<T>& source, int64_t outer0, int64_t outer, int64_t k0, int64_t k, int64_t padded_k,
                     int64_t width, Packed* target) {
    if (source.k_contiguous()) {
      split_q_from_rows(source, outer0, outer, k0, k, padded_k, width, target);
      return;
    }
    for (int64_t kk = 0; kk < padded_k; kk += kSplitStep) {
      for (int64_t pair = 0; pair < kSplitPairs; ++pair) {
        split_q_step(source, outer0, outer, k0 + kk + pair, k0 + k, pair, width, target + kk * width);
      }
    }
  }

  // Long runs of each row at a time: panel after panel would touch every row, and its page, once per panel.
  template <class T>
  static void pack_q_panels(const Source<T>& source, int64_t outer0, int64_t outer, int64_t k0, int64_t k,
                            int64_t padded_k, int64_t last_width, Packed* target, int64_t panel_size) {
    constexpr int64_t kRowsAhead = 4;
    for (int64_t kk = 0; kk < padded_k; kk += kSplitStep) {
      for (int64_t pair = 0; pair < kSplitPairs; ++pair) {
        const int64_t at = k0 + kk + pair;
        for (int64_t row = at + kRowsAhead; row < k0 + k && row <= at + kRowsAhead + 16; row += 16) {
          const char* ahead = reinterpret_cast<const char*>(source.at(outer0, row));
          for (int64_t byte = 0; byte < outer * static_cast<int64_t>(sizeof(T)); byte += 64)
            __builtin_prefetch(ahead + byte);
        }
        for (int64_t j = 0; j < outer; j += kQColumns) {
          const int64_t width = outer - j < kQColumns ? last_width : kQColumns;
          split_q_step(source, outer0 + j, outer - j, at, k0 + k, pair, width,
                       target + j / kQColumns * panel_size + kk * width);
        }
      }
    }
  }
};

}  // namespace moe::cpu::MOE_ISA
