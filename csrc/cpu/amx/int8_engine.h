// The AMX engine for int8: tiles of 16 rows of 64 bytes. A tile of weights is 16 channels by 64 of k, loaded from where
// they lie; a tile of activations is 16 groups of four k by 16 rows, packed that way. Their product is 16 channels by
// 16 rows. Tile registers: 0-3 sums, 4-5 weights, 6-7 activations.
//
// Up to kStreamedRows rows, a weight is used once or twice and comes straight from memory: 32 channels at a time, each
// a stream of its own, and those of the next group are fetched meanwhile. With more rows a block of 32 channels is first
// copied to where it stays in the L1 cache while the activations pass by.
#pragma once

#include "cpu/avx512/vector.h"
#include "cpu/vectorized/int8_driver.h"

namespace moe::cpu::MOE_ISA {

struct AmxInt8Engine {
  using Packed = int8_t;
  static constexpr int64_t kStep = 64;
  static constexpr int64_t kTile = 16 * kStep;
  static constexpr int64_t kStreamedRows = 32;
  // Two panels of so much of k are 16 KiB.
  static constexpr int64_t kBlock = 512;
  static constexpr int64_t kScratchBytes = 2 * kInt8Panel * kBlock;

  static void begin() {
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } const config;
    _tile_loadconfig(&config);
  }
  static void end() { _tile_release(); }
  static int64_t packed_bytes(int64_t rows, int64_t padded_k) { return rows * padded_k; }

  // Sixteen rows at a time: [k / 4][row][4]. Rows that are not there may hold anything.
  static void pack(const int8_t* const* rows, int64_t first, int64_t count, int64_t padded_k, Packed* packed) {
    const float* lanes[kInt8Panel];
    for (int64_t r = 0; r < kInt8Panel; ++r) lanes[r] = reinterpret_cast<const float*>(rows[r < count ? r : 0]);
    float* target = reinterpret_cast<float*>(packed + first * padded_k);
    for (int64_t k4 = 0; k4 < padded_k / 4; k4 += 16) {
      transpose16_rows(lanes, target + k4 * kInt8Panel, kInt8Panel);
      for (int64_t r = 0; r < kInt8Panel; ++r) lanes[r] += 16;
    }
  }

  static void multiply(const Packed* packed, int64_t rows, const Int8Panels& panels, int64_t k, int32_t* sums,
                       int64_t ld, void* scratch) {
    const bool whole = panels.channels[0] == kInt8Panel && panels.channels[1] == kInt8Panel && k % kStep == 0;
    if (whole && rows <= kStreamedRows) {
      const Weights weights = {{panels.panel[0], panels.panel[1]}, panels.stride, kStep};
      const Ahead ahead = {{panels.next[0], panels.next[1]}, panels.stride, 0, kInt8Group};
      multiply_tiles<2>(weights, packed, rows, k, k, ahead, sums, ld, false);
    } else if (panels.channels[1] > 0) {
      multiply_copied<2>(packed, rows, panels, k, sums, ld, static_cast<int8_t*>(scratch));
    } else {
      multiply_copied<1>(packed, rows, panels, k, sums, ld, static_cast<int8_t*>(scratch));
    }
  }

 private:
  // Two panels of weights: rows `stride` bytes apart, the next 64 of k `step` bytes on.
  struct Weights {
    const int8_t* panel[2];
    int64_t stride, step;
  };
  // What to fetch while something else is multiplied: of 32 channels, those from first to last, as much of k as is
  // multiplied.
  struct Ahead {
    const int8_t* panel[2];
    int64_t stride;
    int64_t first, last;

    void fetch(int64_t k) const {
      for (int64_t c = first; c < last; ++c) {
        __builtin_prefetch(panel[c / kInt8Panel] + c % kInt8Panel * stride + k, 0, 2);
      }
    }
  };

  template <int kPanels>
  static void multiply_copied(const Packed* packed, int64_t rows, const Int8Panels& panels, int64_t k, int32_t* sums,
                              int64_t ld, int8_t* copy) {
    const int64_t padded_k = int8_round_up(k, kInt8RowMultiple);
    int64_t k0 = 0;
    do {
      const int64_t count = k - k0 < kBlock ? k - k0 : kBlock, padded = int8_round_up(count, kStep);
      for (int panel = 0; panel < kPanels; ++panel) {
        copy_panel(panels.panel[panel] + k0, panels.stride, panels.channels[panel], count,
                   copy + panel * kInt8Panel * padded);
      }
      const Weights weights = {{copy, copy + kInt8Panel * padded}, kStep, kTile};
      const bool last = k0 + count == k;
      // The block after this one. A length that differs fetches too much or too little, which harms nothing.
      Ahead ahead = {{last ? panels.next[0] : panels.panel[0] + k0 + count,
                      last ? panels.next[1] : panels.panel[1] + k0 + count},
                     panels.stride,
                     0,
                     0};
      const int64_t passes = (rows + 31) / 32;
      for (int64_t pass = 0; pass < passes; ++pass) {
        ahead.first = kInt8Group * pass / passes;
        ahead.last = kInt8Group * (pass + 1) / passes;
        const int64_t i = pass * 32;
        multiply_tiles<kPanels>(weights, packed + i * padded_k + k0 * kInt8Panel, rows - i, padded, padded_k, ahead,
                                sums + i, ld, k0 > 0);
      }
      k0 += count;
    } while (k0 < k);
  }

  // To tiles one after the other, each 16 channels of 64 bytes, with zeros past k.
  static void copy_panel(const int8_t* from, int64_t stride, int64_t channels, int64_t k, int8_t* to) {
    for (int64_t c = 0; c < channels; ++c) {
      int64_t kk = 0;
      for (; kk + kStep <= k; kk += kStep) {
        _mm512_store_si512(to + kk * kInt8Panel + c * kStep, _mm512_loadu_si512(from + c * stride + kk));
      }
      if (kk < k) {
        const __mmask64 mask = (uint64_t{1} << (k - kk)) - 1;
        _mm512_store_si512(to + kk * kInt8Panel + c * kStep, _mm512_maskz_loadu_epi8(mask, from + c * stride + kk));
      }
    }
  }

  template <int kPanels>
  static void multiply_tiles(const Weights& weights, const Packed* x, int64_t rows, int64_t k, int64_t padded_k,
                             const Ahead& ahead, int32_t* sums, int64_t ld, bool accumulate) {
    if (rows > kInt8Panel) {
      multiply_tiles_by<kPanels, 2>(weights, x, k, padded_k, ahead, sums, ld, accumulate);
    } else {
      multiply_tiles_by<kPanels, 1>(weights, x, k, padded_k, ahead, sums, ld, accumulate);
    }
  }

  template <int kPanels, int kRowTiles>
  static void multiply_tiles_by(const Weights& weights, const Packed* x, int64_t k, int64_t padded_k,
                                const Ahead& ahead, int32_t* sums, int64_t ld, bool accumulate) {
    const int64_t ld_bytes = ld * static_cast<int64_t>(sizeof(int32_t));
    int32_t* second = sums + kInt8Panel * ld;
    const int8_t *w0 = weights.panel[0], *w1 = weights.panel[1], *x1 = x + kInt8Panel * padded_k;
    if (accumulate) {
      _tile_loadd(0, sums, ld_bytes);
      if constexpr (kRowTiles > 1) _tile_loadd(1, sums + kInt8Panel, ld_bytes);
      if constexpr (kPanels > 1) _tile_loadd(2, second, ld_bytes);
      if constexpr (kPanels > 1 && kRowTiles > 1) _tile_loadd(3, second + kInt8Panel, ld_bytes);
    } else {
      _tile_zero(0);
      if constexpr (kRowTiles > 1) _tile_zero(1);
      if constexpr (kPanels > 1) _tile_zero(2);
      if constexpr (kPanels > 1 && kRowTiles > 1) _tile_zero(3);
    }
    for (int64_t kk = 0; kk < k; kk += kStep) {
      ahead.fetch(kk);
      _tile_loadd(4, w0, weights.stride);
      _tile_loadd(6, x, 64);
      _tile_dpbssd(0, 4, 6);
      if constexpr (kRowTiles > 1) {
        _tile_loadd(7, x1, 64);
        _tile_dpbssd(1, 4, 7);
      }
      if constexpr (kPanels > 1) {
        _tile_loadd(5, w1, weights.stride);
        _tile_dpbssd(2, 5, 6);
        if constexpr (kRowTiles > 1) _tile_dpbssd(3, 5, 7);
      }
      w0 += weights.step;
      w1 += weights.step;
      x += kTile;
      x1 += kTile;
    }
    _tile_stored(0, sums, ld_bytes);
    if constexpr (kRowTiles > 1) _tile_stored(1, sums + kInt8Panel, ld_bytes);
    if constexpr (kPanels > 1) _tile_stored(2, second, ld_bytes);
    if constexpr (kPanels > 1 && kRowTiles > 1) _tile_stored(3, second + kInt8Panel, ld_bytes);
  }
};

}  // namespace moe::cpu::MOE_ISA
