// Puts bfloat16 operands into tiles of 1 KiB, zero where nothing is: tile by tile, each with all its steps of k.
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

// P tiles of rows [row0, rows).
static inline void pack_rows(const Source<bf16>& source, int64_t row0, int64_t rows, int64_t k, char* tiles) {
  // Rows are gathered, and no prefetcher foresees that.
  constexpr int64_t kRowsAhead = 3;
  const auto row_at = [&](int64_t row) {
    return row < rows ? reinterpret_cast<const char*>(source.at(row, 0)) : nullptr;
  };
  const int64_t padded_rows = tiles_of(rows - row0) * kTileSide;
  for (int64_t r = 0; r < padded_rows; ++r) {
    const char *from = row_at(row0 + r), *soon = row_at(row0 + r + kRowsAhead);
    char* line = tiles + r / kTileSide * steps_of(k) * kTile + r % kTileSide * 64;
    for (int64_t kk = 0; kk < k; kk += kStepK, line += kTile) {
      const uint32_t mask = from ? mask_of(k - kk) : 0;
      if (soon) _mm_prefetch(soon + kk * 2, _MM_HINT_T0);
      _mm512_store_si512(line, _mm512_maskz_loadu_epi16(mask, from + kk * 2));
    }
  }
}

// Q tiles of all `rows` rows, transposed, so that a line holds a pair of k of 16 rows.
static inline void transpose_rows(const Source<bf16>& source, int64_t rows, int64_t k, char* tiles) {
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
  find_rows(0, from + kTileSide);
  for (int64_t tile = 0; tile < tiles_of(rows); ++tile) {
    memcpy(from, from + kTileSide, sizeof(from) / 2);
    find_rows((tile + 1) * kTileSide, from + kTileSide);
    const float* lines[kTileSide];
    char* target = tiles + tile * steps_of(k) * kTile;
    for (int64_t kk = 0; kk < k; kk += kStepK, target += kTile) {
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

// Two Q tiles from `k` rows that are contiguous along the columns, `columns` of them there: two rows become 16 pairs
// and 16 pairs. steps: how many a tile has room for.
static inline void interleave_columns(const bf16* const* rows, int64_t k, int64_t column0, int64_t columns, char* tiles,
                                      int64_t steps) {
  const uint32_t mask = mask_of(columns);
  for (int64_t kk = 0; kk < steps_of(k) * kStepK; kk += 2, tiles += 64) {
    const __m512i zero = _mm512_setzero_si512();
    const __m512i low = kk < k ? _mm512_maskz_loadu_epi16(mask, rows[kk] + column0) : zero;
    const __m512i high = kk + 1 < k ? _mm512_maskz_loadu_epi16(mask, rows[kk + 1] + column0) : zero;
    interleave_lines(low, high, tiles, tiles + steps * kTile);
  }
}

// Two P tiles from the same: interleaved, then transposed.
static inline void transpose_columns(const bf16* const* rows, int64_t k, int64_t column0, int64_t columns,
                                     char* tiles) {
  const int64_t tile_bytes = steps_of(k) * kTile;
  alignas(64) char pairs[2 * kTile];
  for (int64_t kk = 0; kk < k; kk += kStepK, tiles += kTile) {
    interleave_columns(rows + kk, smaller(k - kk, kStepK), column0, columns, pairs, 1);
    for (int64_t tile = 0; tile < 2; ++tile) {
      transpose16(reinterpret_cast<const float*>(pairs + tile * kTile), kTileSide,
                  reinterpret_cast<float*>(tiles + tile * tile_bytes), kTileSide);
    }
  }
}

}  // namespace moe::cpu::MOE_ISA
