// Copies a piece of a matrix into the layout that a micro-kernel reads, converting and gathering on the way.
//
// The left side of a micro-kernel ("P", broadcast) is a panel of few outer positions, row-major [outer][k] or k-major
// [k][outer]; the right side ("Q", vectors) is [k / kPair][outer][kPair]. kPair is 2 where the hardware multiplies
// pairs of bfloat16, else 1. Everything that no element fills is zero.
#pragma once

#include <cstring>

#include "cpu/gemm.h"
#include "cpu/isa.h"
#include "cpu/vectorized/numeric.h"

namespace moe::cpu::MOE_ISA {

template <class T>
struct Source {
  const T* data;
  int64_t outer_stride, k_stride;
  const int32_t* index;
  int64_t divisor;
  bool index_along_k;

  explicit Source(const GemmOperand& operand)
      : data(static_cast<const T*>(operand.data)),
        outer_stride(operand.outer_stride),
        k_stride(operand.k_stride),
        index(operand.index),
        divisor(operand.index_divisor),
        index_along_k(operand.index_along_k) {}

  const T* at(int64_t outer, int64_t k) const {
    if (index) {
      if (index_along_k) {
        k = index[k] / divisor;
      } else {
        outer = index[outer] / divisor;
      }
    }
    return data + outer * outer_stride + k * k_stride;
  }
  bool k_contiguous() const { return k_stride == 1 && !(index && index_along_k); }
  bool outer_contiguous() const { return outer_stride == 1 && !(index && !index_along_k); }
};

// body(i) for i in [0, count), in blocks whose size the compiler knows and can turn into a few vector instructions.
template <class Body>
static inline __attribute__((always_inline)) void for_each_in_blocks(int64_t count, const Body& body) {
  constexpr int64_t kBlock = 16;
  const int64_t blocks = count / kBlock, rest = count % kBlock;
  for (int64_t block = 0; block < blocks; ++block) {
    for (int64_t lane = 0; lane < kBlock; ++lane) body(block * kBlock + lane);
  }
  for (int64_t lane = 0; lane < rest; ++lane) body(blocks * kBlock + lane);
}

template <class T, class Packed>
static inline Packed convert(T value) {
  return from_acc<Packed>(to_acc(value));
}

template <class T, class Packed>
static inline void convert_run(const T* __restrict source, Packed* __restrict target, int64_t count) {
  if constexpr (sizeof(T) == sizeof(Packed)) {
    memcpy(target, source, count * sizeof(T));
  } else {
    for_each_in_blocks(count, [&](int64_t i) { target[i] = convert<T, Packed>(source[i]); });
  }
}

// Copies whole cache lines of eight rows side by side, each fetched ahead, so that several streams of memory are under
// way at once.
static constexpr int64_t kStreams = 8;
static inline void copy_streams(const char* const* rows, char* target, int64_t target_stride, int64_t lines) {
  constexpr int64_t kLine = 64, kAhead = 8;
  for (int64_t line = 0; line < lines; ++line) {
#pragma GCC unroll 8
    for (int64_t r = 0; r < kStreams; ++r) {
      __builtin_prefetch(rows[r] + (line + kAhead) * kLine);
      memcpy(target + r * target_stride + line * kLine, rows[r] + line * kLine, kLine);
    }
  }
}

// [outer][k] with row stride ld, rows [0, padded_outer), k [0, padded_k).
template <class T, class Packed>
static void pack_row_major(const Source<T>& source, int64_t outer0, int64_t outer, int64_t padded_outer, int64_t k0,
                           int64_t k, int64_t padded_k, Packed* target, int64_t ld) {
  int64_t first = 0;
  if constexpr (sizeof(T) == sizeof(Packed)) {
    if (reads_side_by_side() && source.k_contiguous() && k * sizeof(T) % 64 == 0 && k == padded_k) {
      for (; first + kStreams <= outer; first += kStreams) {
        const char* rows[kStreams];
        for (int64_t r = 0; r < kStreams; ++r) {
          rows[r] = reinterpret_cast<const char*>(source.at(outer0 + first + r, k0));
        }
        copy_streams(rows, reinterpret_cast<char*>(target + first * ld), ld * sizeof(Packed), k * sizeof(T) / 64);
      }
    }
  }
  for (int64_t i = first; i < outer; ++i) {
    Packed* row = target + i * ld;
    if (source.k_contiguous()) {
      convert_run(source.at(outer0 + i, k0), row, k);
    } else {
      for (int64_t kk = 0; kk < k; ++kk) row[kk] = convert<T, Packed>(*source.at(outer0 + i, k0 + kk));
    }
    if (padded_k > k) memset(row + k, 0, (padded_k - k) * sizeof(Packed));
  }
  for (int64_t i = outer; i < padded_outer; ++i) memset(target + i * ld, 0, padded_k * sizeof(Packed));
}

// [k][width]: one row per k. Serves both a k-major P panel and a Q panel without pairs.
template <class T, class Packed>
static void pack_k_major(const Source<T>& source, int64_t outer0, int64_t outer, int64_t k0, int64_t k, int64_t width,
                         Packed* target) {
  for (int64_t kk = 0; kk < k; ++kk) {
    Packed* row = target + kk * width;
    if (source.outer_contiguous()) {
      convert_run(source.at(outer0, k0 + kk), row, outer);
    } else {
      for (int64_t j = 0; j < outer; ++j) row[j] = convert<T, Packed>(*source.at(outer0 + j, k0 + kk));
    }
    if (width > outer) memset(row + outer, 0, (width - outer) * sizeof(Packed));
  }
}

// Sixteen rows of 16 lanes into 16 columns of `run` rows, or as many as a panel of that width has left at column j0.
static inline void transpose_into_panel(const float* const* rows, int64_t run, int64_t j0, int64_t width,
                                        float* target) {
  if (run == 16 && width - j0 >= 16) {
    transpose16_rows(rows, target + j0, width);
    return;
  }
  alignas(64) float transposed[16 * 16];
  transpose16_rows(rows, transposed, 16);
  const int64_t columns = width - j0 < 16 ? width - j0 : 16;
  for (int64_t r = 0; r < run; ++r) memcpy(target + r * width + j0, transposed + r * 16, columns * sizeof(float));
}

// The transpose of 16 rows of 16 floats at a time: a Q panel of float32 from rows that are contiguous along k.
template <class T>
static void pack_q_from_rows(const Source<T>& source, int64_t outer0, int64_t outer, int64_t k0, int64_t k,
                             int64_t width, float* target) {
  float tile[16 * 16];
  const float* lines[16];
  for (int64_t j = 0; j < 16; ++j) lines[j] = tile + j * 16;
  for (int64_t j0 = 0; j0 < width; j0 += 16) {
    const T* rows[16];
    for (int64_t j = 0; j < 16; ++j) rows[j] = j0 + j < outer ? source.at(outer0 + j0 + j, k0) : nullptr;
    for (int64_t kk = 0; kk < k; kk += 16) {
      const int64_t run = k - kk < 16 ? k - kk : 16;
      for (int64_t j = 0; j < 16; ++j) {
        float* row = tile + j * 16;
        if (!rows[j]) {
          memset(row, 0, sizeof(float) * 16);
        } else if (run == 16) {
          convert_run(rows[j] + kk, row, 16);
        } else {
          memset(row, 0, sizeof(float) * 16);
          convert_run(rows[j] + kk, row, run);
        }
      }
      transpose_into_panel(lines, run, j0, width, target + kk * width);
    }
  }
}

// A Q panel of pairs, [k/2][width][2], from rows contiguous along k: the same transpose, a pair being one float wide.
static inline void pack_pairs_from_rows(const Source<bf16>& source, int64_t outer0, int64_t outer, int64_t k0,
                                        int64_t k, int64_t padded_k, int64_t width, bf16* target) {
  alignas(64) bf16 tile[16 * 32];
  for (int64_t j0 = 0; j0 < width; j0 += 16) {
    const bf16* rows[16];
    bool full = true;
    for (int64_t j = 0; j < 16; ++j) {
      rows[j] = j0 + j < outer ? source.at(outer0 + j0 + j, k0) : nullptr;
      full = full && rows[j];
    }
    for (int64_t kk = 0; kk < padded_k; kk += 32) {
      const int64_t run = k - kk < 32 ? k - kk : 32;
      const bool whole = full && run == 32;
      const float* lines[16];
      if (!whole) memset(tile, 0, sizeof(tile));
      for (int64_t j = 0; j < 16; ++j) {
        if (!whole && rows[j] && run > 0) memcpy(tile + j * 32, rows[j] + kk, run * sizeof(bf16));
        lines[j] = reinterpret_cast<const float*>(whole ? rows[j] + kk : tile + j * 32);
      }
      transpose_into_panel(lines, 16, j0, width, reinterpret_cast<float*>(target + kk * width));
    }
  }
}

// One row of pairs: target[j] = {low[j], high[j]}. Null rows are zero.
static inline void interleave_rows(const bf16* __restrict low, const bf16* __restrict high, int64_t count,
                                   int64_t width, uint32_t* __restrict target) {
  if (high) {
    for_each_in_blocks(count, [&](int64_t j) { target[j] = low[j].bits | static_cast<uint32_t>(high[j].bits) << 16; });
  } else {
    for_each_in_blocks(count, [&](int64_t j) { target[j] = low[j].bits; });
  }
  if (width > count) memset(target + count, 0, (width - count) * sizeof(uint32_t));
}

// A Q panel of pairs from rows contiguous along the outer dimension.
static inline void pack_pairs_from_columns(const Source<bf16>& source, int64_t outer0, int64_t outer, int64_t k0,
                                           int64_t k, int64_t padded_k, int64_t width, bf16* target) {
  for (int64_t kk = 0; kk < padded_k; kk += 2) {
    uint32_t* row = reinterpret_cast<uint32_t*>(target + kk * width);
    if (kk >= k) {
      memset(row, 0, width * sizeof(uint32_t));
    } else {
      interleave_rows(source.at(outer0, k0 + kk), kk + 1 < k ? source.at(outer0, k0 + kk + 1) : nullptr, outer, width,
                      row);
    }
  }
}

// Columns [outer0, outer0 + outer) as Q panels of kWidth, panel_size apart, the last one of width last_width: one long
// run of each row is read at a time, where panel after panel would touch every row, and its page, once per panel.
template <int64_t kWidth, class T, class Packed>
static void pack_q_panels_of_width(const Source<T>& source, int64_t outer0, int64_t outer, int64_t k0, int64_t k,
                                   int64_t padded_k, int64_t last_width, Packed* target, int64_t panel_size) {
  constexpr bool kPairs = sizeof(T) == 2 && sizeof(Packed) == 2;
  constexpr int64_t kRows = kPairs ? 2 : 1;
  constexpr int64_t kAhead = 8;
  const int64_t full = outer / kWidth * kWidth;
  for (int64_t kk = 0; kk < padded_k; kk += kRows) {
    const T* low = kk < k ? source.at(outer0, k0 + kk) : nullptr;
    const T* high = kRows == 2 && kk + 1 < k ? source.at(outer0, k0 + kk + 1) : nullptr;
    if (kk + kAhead + 1 < k) {
      for (int64_t row = 0; row < kRows; ++row) {
        const char* ahead = reinterpret_cast<const char*>(source.at(outer0, k0 + kk + kAhead + row));
        for (int64_t byte = 0; byte < outer * static_cast<int64_t>(sizeof(T)); byte += 64)
          __builtin_prefetch(ahead + byte);
      }
    }
    const auto pack = [&](int64_t j, int64_t count, int64_t width) __attribute__((always_inline)) {
      Packed* row = target + j / kWidth * panel_size + kk * width;
      if (!low) {
        memset(row, 0, width * kRows * sizeof(Packed));
      } else if constexpr (kPairs) {
        interleave_rows(low + j, high ? high + j : nullptr, count, width, reinterpret_cast<uint32_t*>(row));
      } else {
        convert_run(low + j, row, count);
        if (width > count) memset(row + count, 0, (width - count) * sizeof(Packed));
      }
    };
    for (int64_t j = 0; j < full; j += kWidth) pack(j, kWidth, kWidth);
    if (full < outer) pack(full, outer - full, last_width);
  }
}

// A P panel, row-major, of pairs from rows contiguous along the outer dimension: interleave, then transpose.
static inline void pack_pairs_transposed(const Source<bf16>& source, int64_t outer0, int64_t outer,
                                         int64_t padded_outer, int64_t k0, int64_t k, int64_t padded_k, bf16* target,
                                         int64_t ld) {
  alignas(64) uint32_t pairs[16 * 16];
  alignas(64) float transposed[16 * 16];
  for (int64_t kk = 0; kk < padded_k; kk += 32) {
    for (int64_t i0 = 0; i0 < padded_outer; i0 += 16) {
      const int64_t columns = outer - i0 < 16 ? (outer > i0 ? outer - i0 : 0) : 16;
      for (int64_t pair = 0; pair < 16; ++pair) {
        const int64_t at = kk + pair * 2;
        if (at >= k || columns == 0) {
          memset(pairs + pair * 16, 0, sizeof(uint32_t) * 16);
        } else {
          interleave_rows(source.at(outer0 + i0, k0 + at), at + 1 < k ? source.at(outer0 + i0, k0 + at + 1) : nullptr,
                          columns, 16, pairs + pair * 16);
        }
      }
      const int64_t rows = padded_outer - i0 < 16 ? padded_outer - i0 : 16;
      if (rows == 16) {
        transpose16(reinterpret_cast<const float*>(pairs), 16, reinterpret_cast<float*>(target + i0 * ld + kk), ld / 2);
      } else {
        transpose16(reinterpret_cast<const float*>(pairs), 16, transposed, 16);
        for (int64_t r = 0; r < rows; ++r) memcpy(target + (i0 + r) * ld + kk, transposed + r * 16, 64);
      }
    }
  }
}

// Any strides at all: element by element.
static inline void pack_pairs_anyhow(const Source<bf16>& source, int64_t outer0, int64_t outer, int64_t k0, int64_t k,
                                     int64_t padded_k, int64_t width, bf16* target) {
  for (int64_t kk = 0; kk < padded_k; ++kk) {
    for (int64_t j = 0; j < width; ++j) {
      target[(kk / 2 * width + j) * 2 + kk % 2] = kk < k && j < outer ? *source.at(outer0 + j, k0 + kk) : bf16{0};
    }
  }
}

}  // namespace moe::cpu::MOE_ISA
