// Puts bfloat16 operands into panels of tiles: [steps of k][two tiles of 1 KiB], zero where nothing is.
#pragma once

#include "cpu/amx/tiles.h"
#include "cpu/avx512/vector.h"
#include "cpu/vectorized/pack.h"

namespace moe::cpu::MOE_ISA {

MOE_INLINE uint32_t mask_of(int64_t count) { return count >= 32 ? ~0u : (1u << count) - 1; }

// Rows from here on of whole lines.
MOE_INLINE bool are_lines(const bf16* first, int64_t row_stride) {
  return reinterpret_cast<uintptr_t>(first) % 64 == 0 && row_stride % 32 == 0;
}

// The pairs (low[j], high[j]) of 32 columns: 16 pairs into each of two lines.
MOE_INLINE void interleave_lines(__m512i low, __m512i high, char* first, char* second) {
  const __m512i lower = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37,
                                         5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
  const __m512i upper = _mm512_add_epi16(lower, _mm512_set1_epi16(16));
  _mm512_store_si512(first, _mm512_permutex2var_epi16(low, lower, high));
  _mm512_store_si512(second, _mm512_permutex2var_epi16(low, upper, high));
}

// P panel: 32 rows contiguous along k, `rows` of them there.
static inline void copy_rows(const Source<bf16>& source, int64_t outer0, int64_t rows, int64_t k0, int64_t k,
                             char* panel) {
  for (int64_t r = 0; r < kPanel; ++r) {
    char* line = panel + r * 64;
    const char* from = r < rows ? reinterpret_cast<const char*>(source.at(outer0 + r, k0)) : nullptr;
    for (int64_t kk = 0; kk < k; kk += kStepK, line += kPanelStep) {
      const uint32_t mask = from ? mask_of(k - kk) : 0;
      _mm512_store_si512(line, _mm512_maskz_loadu_epi16(mask, from + kk * 2));
    }
  }
}

// P panels of all `rows` rows. A panel of at most 16 rows has its second tiles left as they are.
static inline void pack_rows(const Source<bf16>& source, int64_t rows, int64_t k, char* panels) {
  // Rows are gathered, and no prefetcher foresees that.
  constexpr int64_t kRowsAhead = 3;
  const auto row_at = [&](int64_t row) {
    return row < rows ? reinterpret_cast<const char*>(source.at(row, 0)) : nullptr;
  };
  const int64_t padded_rows = (rows + kTileSide - 1) / kTileSide * kTileSide;
  for (int64_t row = 0; row < padded_rows; ++row) {
    const char *from = row_at(row), *soon = row_at(row + kRowsAhead);
    char* line = panels + row / kPanel * steps_of(k) * kPanelStep + row % kPanel * 64;
    for (int64_t kk = 0; kk < k; kk += kStepK, line += kPanelStep) {
      const uint32_t mask = from ? mask_of(k - kk) : 0;
      if (soon) _mm_prefetch(soon + kk * 2, _MM_HINT_T0);
      _mm512_store_si512(line, _mm512_maskz_loadu_epi16(mask, from + kk * 2));
    }
  }
}

// Q panels: all `rows` rows transposed, so that a line holds a pair of k of 16 rows. A panel of at most 16 rows has its
// second tiles left as they are.
static inline void transpose_rows(const Source<bf16>& source, int64_t rows, int64_t k, char* panels) {
  // Rows are gathered, and no prefetcher foresees that: some steps ahead of their use, and then the rows that follow.
  constexpr int64_t kAhead = 8 * kStepK;
  alignas(64) static constexpr char zeros[64] = {};
  alignas(64) char tail[kTileSide * 64];
  const char* from[2 * kTileSide];
  const auto find_rows = [&](int64_t row0, const char** found) {
    for (int64_t r = 0; r < kTileSide; ++r) {
      found[r] = row0 + r < rows ? reinterpret_cast<const char*>(source.at(row0 + r, 0)) : nullptr;
    }
  };
  const int64_t tiles = (rows + kTileSide - 1) / kTileSide;
  find_rows(0, from + kTileSide);
  for (int64_t tile = 0; tile < tiles; ++tile) {
    memcpy(from, from + kTileSide, sizeof(from) / 2);
    find_rows((tile + 1) * kTileSide, from + kTileSide);
    const float* lines[kTileSide];
    char* target = panels + tile / 2 * steps_of(k) * kPanelStep + tile % 2 * kTile;
    for (int64_t kk = 0; kk < k; kk += kStepK, target += kPanelStep) {
      const bool whole = k - kk >= kStepK, wraps = kk + kAhead >= k;
      const char* const* soon = wraps ? from + kTileSide : from;
      const int64_t soon_at = kk + kAhead - (wraps ? steps_of(k) * kStepK : 0);
      for (int64_t r = 0; r < kTileSide; ++r) {
        const char* line = from[r] ? from[r] + kk * 2 : zeros;
        if (soon[r] && soon_at >= 0) _mm_prefetch(soon[r] + soon_at * 2, _MM_HINT_T0);
        if (!whole && from[r]) {
          _mm512_store_si512(tail + r * 64, _mm512_maskz_loadu_epi16(mask_of(k - kk), line));
          line = tail + r * 64;
        }
        lines[r] = reinterpret_cast<const float*>(line);
      }
      transpose16_rows(lines, reinterpret_cast<float*>(target), kTileSide);
    }
  }
}

// Q panel from `k` rows that are contiguous along the columns, `columns` of them there: two rows become 16 pairs and 16
// pairs.
static inline void interleave_columns(const bf16* const* rows, int64_t k, int64_t column0, int64_t columns,
                                      char* panel) {
  const uint32_t mask = mask_of(columns);
  for (int64_t kk = 0; kk < steps_of(k) * kStepK; kk += 2) {
    const __m512i zero = _mm512_setzero_si512();
    const __m512i low = kk < k ? _mm512_maskz_loadu_epi16(mask, rows[kk] + column0) : zero;
    const __m512i high = kk + 1 < k ? _mm512_maskz_loadu_epi16(mask, rows[kk + 1] + column0) : zero;
    char* line = panel + kk / kStepK * kPanelStep + kk % kStepK / 2 * 64;
    interleave_lines(low, high, line, line + kTile);
  }
}

// P panel from the same: interleaved, then transposed.
static inline void transpose_columns(const bf16* const* rows, int64_t k, int64_t column0, int64_t columns,
                                     char* panel) {
  alignas(64) char pairs[kPanelStep];
  for (int64_t kk = 0; kk < k; kk += kStepK, panel += kPanelStep) {
    interleave_columns(rows + kk, smaller(k - kk, kStepK), column0, columns, pairs);
    for (int64_t tile = 0; tile < 2; ++tile) {
      transpose16(reinterpret_cast<const float*>(pairs + tile * kTile), kTileSide,
                  reinterpret_cast<float*>(panel + tile * kTile), kTileSide);
    }
  }
}

}  // namespace moe::cpu::MOE_ISA
