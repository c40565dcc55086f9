// The AMX engine for int8: tiles of 16 rows of 64 bytes. A tile of weights is 16 channels by 64 of k, loaded from where
// they lie; a tile of activations is 16 groups of four k by 16 rows, packed that way. Their product is 16 channels by
// 16 rows. Tile registers: 0-3 sums, 4-5 weights, 6-7 activations.
//
// Up to kStreamedRows rows, a weight is used once or twice and comes straight from memory: 32 channels at a time, each
// a stream of its own that is fetched kAhead bytes early. With more rows a block of activations stays in the L1 cache
// while the weights of several groups pass by, from L2; and while that goes on for all rows, the groups after them are
// fetched.
#pragma once

#include "cpu/avx512/vector.h"
#include "cpu/vectorized/int8_driver.h"

namespace moe::cpu::MOE_ISA {

struct AmxInt8Engine {
  using Packed = int8_t;
  static constexpr int64_t kStep = 64;
  static constexpr int64_t kTile = 16 * kStep;
  static constexpr int64_t kStreamedRows = 32;
  static constexpr int64_t kMostGroups = 4;
  // 16 KiB in all streams together: some four times what memory delivers in the time that one read takes.
  static constexpr int64_t kAhead = 512;
  // Two tiles of rows by so much of k are 16 KiB.
  static constexpr int64_t kBlock = 512;

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
  static int64_t groups_at_once(int64_t rows) { return rows <= kStreamedRows ? 1 : kMostGroups; }
  static int64_t scratch_bytes(int64_t rows, int64_t padded_k) { return groups_at_once(rows) * kInt8Group * padded_k; }

  // Sixteen rows by 64 of k are a tile, [k / 4][row][4]; two tiles of rows side by side take turns along k. Rows that
  // are not there may hold anything.
  static void pack(const int8_t* const* rows, int64_t first, int64_t count, int64_t all_rows, int64_t padded_k,
                   Packed* packed) {
    const int64_t pair = first / 32 * 32;
    const float* lanes[kInt8Panel];
    for (int64_t r = 0; r < kInt8Panel; ++r) lanes[r] = reinterpret_cast<const float*>(rows[r < count ? r : 0]);
    Packed* target = packed + pair * padded_k + (first - pair) * kStep;
    const int64_t step = row_tiles(all_rows - pair) * kTile;
    for (int64_t k = 0; k < padded_k; k += kStep, target += step) {
      transpose16_rows(lanes, reinterpret_cast<float*>(target), kInt8Panel);
      for (int64_t r = 0; r < kInt8Panel; ++r) lanes[r] += 16;
    }
  }

  static void multiply(const Packed* packed, int64_t rows, const Int8Panels* groups, int64_t num_groups, int64_t k,
                       int32_t* sums, int64_t ld, void* scratch) {
    const int64_t padded_k = int8_round_up(k, kStep);
    const int64_t block = rows <= kStreamedRows ? padded_k : kBlock;
    const int64_t passes = (rows + 31) / 32;
    Weights weights[kMostGroups];
    for (int64_t g = 0; g < num_groups; ++g) {
      weights[g] = whole(groups[g], k, static_cast<int8_t*>(scratch) + g * kInt8Group * padded_k);
    }
    int64_t k0 = 0;
    do {
      const int64_t count = padded_k - k0 < block ? padded_k - k0 : block;
      for (int64_t pass = 0; pass < passes; ++pass) {
        const int64_t i = pass * 32;
        const Packed* x = packed + i * padded_k + k0 * kInt8Panel * row_tiles(rows - i);
        // Each pass fetches some of the channels of later groups.
        const int64_t first = kInt8Group * pass / passes, last = kInt8Group * (pass + 1) / passes;
        for (int64_t g = 0; g < num_groups; ++g) {
          Early early = {groups[g], k0, first, last, 0};
          if (passes == 1) early.split = count > kAhead ? count - kAhead : 0;
          int32_t* target = sums + g * kInt8Group * ld + i;
          if (groups[g].channels[1] > 0) {
            multiply_tiles<2>(weights[g].at(k0), x, rows - i, count, early, target, ld, k0 > 0);
          } else {
            multiply_tiles<1>(weights[g].at(k0), x, rows - i, count, early, target, ld, k0 > 0);
          }
        }
      }
      k0 += count;
    } while (k0 < padded_k);
  }

 private:
  // Two panels of weights: rows `stride` bytes apart, the next 64 of k `step` bytes on.
  struct Weights {
    const int8_t* panel[2];
    int64_t stride, step;

    Weights at(int64_t k) const { return {{panel[0] + k / kStep * step, panel[1] + k / kStep * step}, stride, step}; }
  };
  // What to fetch while this group is multiplied: of 32 channels those from first to last, up to `split` of this group
  // kAhead bytes on, from there the group after it from its beginning.
  struct Early {
    const Int8Panels& group;
    int64_t k0, first, last, split;

    void fetch(int64_t k) const {
      const int8_t* const* panel = k < split ? group.panel : group.next;
      const int64_t at = k < split ? k0 + k + kAhead : k0 + k - split;
      for (int64_t c = first; c < last; ++c) {
        __builtin_prefetch(panel[c / kInt8Panel] + c % kInt8Panel * group.stride + at, 0, 2);
      }
    }
  };

  static int64_t row_tiles(int64_t rows) { return rows > kInt8Panel ? 2 : 1; }

  // The weights where they are, or a copy where tiles would reach past their end.
  static Weights whole(const Int8Panels& panels, int64_t k, int8_t* copy) {
    const int64_t padded_k = int8_round_up(k, kStep);
    const int64_t missing = panels.channels[1] > 0 ? kInt8Panel - panels.channels[1] : 0;
    if (k == padded_k && panels.channels[0] == kInt8Panel && missing == 0) {
      return {{panels.panel[0], panels.panel[1]}, panels.stride, kStep};
    }
    for (int panel = 0; panel < 2; ++panel) {
      copy_panel(panels.panel[panel], panels.stride, panels.channels[panel], k, copy + panel * kInt8Panel * padded_k);
    }
    return {{copy, copy + kInt8Panel * padded_k}, kStep, kTile};
  }

  // To tiles one after the other, each 16 channels of 64 bytes, with zeros past k.
  static void copy_panel(const int8_t* from, int64_t stride, int64_t channels, int64_t k, int8_t* to) {
    for (int64_t kk = 0; kk < k; kk += kStep, to += kTile) {
      const __mmask64 mask = k - kk < kStep ? (uint64_t{1} << (k - kk)) - 1 : ~uint64_t{0};
      for (int64_t c = 0; c < channels; ++c) {
        _mm512_store_si512(to + c * kStep, _mm512_maskz_loadu_epi8(mask, from + c * stride + kk));
      }
    }
  }

  template <int kPanels>
  static void multiply_tiles(const Weights& weights, const Packed* x, int64_t rows, int64_t k, const Early& early,
                             int32_t* sums, int64_t ld, bool accumulate) {
    if (rows > kInt8Panel) {
      multiply_tiles_by<kPanels, 2>(weights, x, k, early, sums, ld, accumulate);
    } else {
      multiply_tiles_by<kPanels, 1>(weights, x, k, early, sums, ld, accumulate);
    }
  }

  template <int kPanels, int kRowTiles>
  static void multiply_tiles_by(const Weights& weights, const Packed* x, int64_t k, const Early& early, int32_t* sums,
                                int64_t ld, bool accumulate) {
    const int64_t ld_bytes = ld * static_cast<int64_t>(sizeof(int32_t));
    int32_t* second = sums + kInt8Panel * ld;
    const int8_t *w0 = weights.panel[0], *w1 = weights.panel[1], *x1 = x + kTile;
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
      early.fetch(kk);
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
      x += kRowTiles * kTile;
      x1 += kRowTiles * kTile;
    }
    _tile_stored(0, sums, ld_bytes);
    if constexpr (kRowTiles > 1) _tile_stored(1, sums + kInt8Panel, ld_bytes);
    if constexpr (kPanels > 1) _tile_stored(2, second, ld_bytes);
    if constexpr (kPanels > 1 && kRowTiles > 1) _tile_stored(3, second + kInt8Panel, ld_bytes);
  }
};

}  // namespace moe::cpu::MOE_ISA
