// Fragments of mma.sync and of wgmma's registers, to and from tiles of floats (exec/matrix_product.h).
//
// A register's 32 lanes hold 8 rows of 16 bytes one after the other, whatever the type: lane l has bytes 4·(l mod 4) …
// +3 of row l / 4. For A the rows are rows of the matrix and the bytes run along k; registers 0, 1, 2, 3 are (rows 0–7,
// first 16 bytes), (rows 8–15, first), (rows 0–7, second), (rows 8–15, second). For B the rows are columns n of the
// matrix and the bytes run along k. Accumulators of 32 bits come in pairs of registers: even and odd columns.
//
// Tiles hold the columns in the order 0 2 4 6 1 3 5 7 of each group of 8, which is the order of those pairs.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "core/warp.h"
#include "exec/matrix_element.h"
#include "exec/matrix_product.h"

namespace vgpu {

enum class Accumulator : uint8_t { kF32, kF16, kS32 };

// Where the tile has column c of 8.
constexpr int tile_column(int c) { return (c & 1) * 4 + (c >> 1); }

// 8 rows of 16 bytes → rows of A. `a` is the first row's place.
template <Element kElement>
inline void widen_rows(const std::byte* rows, float* a) {
  for (int g = 0; g < 8; ++g) widen_piece<kElement>(rows + 16 * g, a + g * kTileK);
}

// 8 columns of 16 bytes along k → rows of B, `kLdb` floats apart.
template <Element kElement, int kLdb>
inline void transpose_columns(const std::byte* columns, float* b) {
  constexpr int kPerWord = 4 / bytes_of(kElement);
  // The words of columns 0 2 4 6 1 3 5 7, first those that lane 0 of each group of four holds, then lane 1's …
  alignas(64) uint32_t words[4][8];
#if defined(__AVX512F__)
  typedef uint32_t Words __attribute__((vector_size(64)));
  Words low, high;
  std::memcpy(&low, columns, 64);
  std::memcpy(&high, columns + 64, 64);
  const Words first = {0, 8, 16, 24, 4, 12, 20, 28, 1, 9, 17, 25, 5, 13, 21, 29};
  const Words mixed[2] = {__builtin_shuffle(low, high, first), __builtin_shuffle(low, high, first + 2)};
  std::memcpy(words, mixed, sizeof words);
#else
  for (int n = 0; n < 8; ++n) {
    for (int t = 0; t < 4; ++t) std::memcpy(&words[t][tile_column(n)], columns + 16 * n + 4 * t, 4);
  }
#endif
  for (int t = 0; t < 4; ++t) {
    for (int j = 0; j < kPerWord; ++j) {
      float* row = b + (t * kPerWord + j) * kLdb;
      if constexpr (kElement == Element::kF16) {
        uint16_t halves[8];
        for (int c = 0; c < 8; ++c) halves[c] = static_cast<uint16_t>(words[t][c] >> (16 * j));
        widen_piece<kElement>(reinterpret_cast<const std::byte*>(halves), row);
      } else {
        for (int c = 0; c < 8; ++c) row[c] = element_of<kElement>(words[t][c], j);
      }
    }
  }
}

// 8 rows × 8 columns of 32-bit accumulators; `even` and `odd` are registers. The tile's rows are `stride` apart.
template <class T>
inline void load_pair(const T* even, const T* odd, T* tile, int stride) {
  for (int g = 0; g < 8; ++g) {
    std::memcpy(tile + g * stride, even + 4 * g, 16);
    std::memcpy(tile + g * stride + 4, odd + 4 * g, 16);
  }
}
template <class T>
inline void store_pair(T* even, T* odd, const T* tile, int stride) {
  for (int g = 0; g < 8; ++g) {
    std::memcpy(even + 4 * g, tile + g * stride, 16);
    std::memcpy(odd + 4 * g, tile + g * stride + 4, 16);
  }
}

// 8 rows × 8 columns of f16 accumulators: one register.
inline void load_halves(const uint32_t* lanes, float* tile, int stride) {
  for (int g = 0; g < 8; ++g) {
    float row[8];
    widen_piece<Element::kF16>(reinterpret_cast<const std::byte*>(lanes + 4 * g), row);
    for (int c = 0; c < 8; ++c) tile[g * stride + tile_column(c)] = row[c];
  }
}
inline void store_halves(uint32_t* lanes, const float* tile, int stride) {
  for (int g = 0; g < 8; ++g) {
    uint16_t row[8];
    for (int c = 0; c < 8; ++c) row[c] = float_to_half(tile[g * stride + tile_column(c)]);
    std::memcpy(lanes + 4 * g, row, 16);
  }
}

// Adds sums of products, whole numbers below 2^24, to s32 accumulators, which wrap around or saturate.
inline int32_t add_integer(int32_t accumulator, float sum, bool saturate) {
  const int64_t wide = static_cast<int64_t>(accumulator) + static_cast<int32_t>(sum);
  if (saturate) return static_cast<int32_t>(std::clamp<int64_t>(wide, INT32_MIN, INT32_MAX));
  return static_cast<int32_t>(static_cast<uint32_t>(wide));
}

}  // namespace vgpu
