// Products of AMX tiles, up to six at a time, and how operands lie in memory for them.
//
// P gives 16 rows of 32 bfloat16 along k, Q gives 16 pairs of k by 16 columns; D = P Q is 16 by 16 float32. What sets
// the pace is how many tiles a product needs from the L2 cache, and how many sums there are to go on with while one
// waits. Best are six sums, of three tiles of one operand by two of the other: five tiles for six products. Two
// registers are left for operands, so two of the three tiles are loaded twice, the second time from the L1 cache.
#pragma once

#include <immintrin.h>

#include "cpu/vectorized/numeric.h"

namespace moe::cpu::MOE_ISA {

static constexpr int64_t kTile = 1024;  // bytes
static constexpr int64_t kStepK = 32;   // k of one tile
static constexpr int64_t kTileSide = 16;
static constexpr int64_t kPanel = 32;  // rows or columns of two tiles
static constexpr int64_t kPanelStep = 2 * kTile;
static constexpr int64_t kMostTiles = 3;  // of one operand at a time

static constexpr int64_t steps_of(int64_t k) { return (k + kStepK - 1) / kStepK; }
static constexpr int64_t panels_of(int64_t size) { return (size + kPanel - 1) / kPanel; }
static constexpr int64_t tiles_of(int64_t size) { return (size + kTileSide - 1) / kTileSide; }
static constexpr int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// How many of the tiles that are left to take at once: three, but never so that a single one stays behind.
static constexpr int64_t tiles_at_once(int64_t left) { return left == 4 ? 2 : smaller(left, kMostTiles); }
static constexpr int64_t turns_of(int64_t tiles) { return (tiles + kMostTiles - 1) / kMostTiles; }

template <class Body>
MOE_INLINE void with_tiles(int64_t count, const Body& body) {
  if (count == 3) {
    body.template operator()<3>();
  } else if (count == 2) {
    body.template operator()<2>();
  } else {
    body.template operator()<1>();
  }
}

// The compiler does not know what tile instructions read and write: nothing may move across this.
MOE_INLINE void tiles_touch_memory() { __atomic_signal_fence(__ATOMIC_SEQ_CST); }

// Tiles for each step of k, by distances in bytes: between the rows of a tile, from step to step, from tile to tile.
struct TileRun {
  const char* data;
  int64_t row, step, tile;

  // Two tiles for each step, one step after the other.
  static TileRun panel(const void* panel) { return {static_cast<const char*>(panel), 64, kPanelStep, kTile}; }
  // Any number of tiles, each with all its steps.
  static TileRun tiles(const void* first, int64_t steps) {
    return {static_cast<const char*>(first), 64, kTile, steps * kTile};
  }
  // P as it lies in a matrix whose rows are contiguous along k.
  static TileRun rows(const void* first, int64_t row_bytes) {
    return {static_cast<const char*>(first), row_bytes, 64, kTileSide * row_bytes};
  }
};

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

MOE_INLINE void begin_tiles() {
  static constexpr TileConfig config;
  _tile_loadconfig(&config);
}
MOE_INLINE void end_tiles() { _tile_release(); }

// kP by kQ sums in the registers 0 to 5, those of the first tile of P first, and two to four registers for operands.
template <int kP, int kQ>
struct TileSums {
  static_assert((kP <= 2 && kQ <= 2) || (kP == 3 && kQ == 2) || (kP == 2 && kQ == 3));

  MOE_INLINE void zero() {
    if constexpr (has(0)) _tile_zero(0);
    if constexpr (has(1)) _tile_zero(1);
    if constexpr (has(2)) _tile_zero(2);
    if constexpr (has(3)) _tile_zero(3);
    if constexpr (has(4)) _tile_zero(4);
    if constexpr (has(5)) _tile_zero(5);
  }
  MOE_INLINE void load(const float* d, int64_t ldd) {
    if constexpr (has(0)) _tile_loadd(0, d, ldd * 4);
    if constexpr (has(1)) _tile_loadd(1, d + offset(1, ldd), ldd * 4);
    if constexpr (has(2)) _tile_loadd(2, d + offset(2, ldd), ldd * 4);
    if constexpr (has(3)) _tile_loadd(3, d + offset(3, ldd), ldd * 4);
    if constexpr (has(4)) _tile_loadd(4, d + offset(4, ldd), ldd * 4);
    if constexpr (has(5)) _tile_loadd(5, d + offset(5, ldd), ldd * 4);
  }
  MOE_INLINE void store(float* d, int64_t ldd) {
    if constexpr (has(0)) _tile_stored(0, d, ldd * 4);
    if constexpr (has(1)) _tile_stored(1, d + offset(1, ldd), ldd * 4);
    if constexpr (has(2)) _tile_stored(2, d + offset(2, ldd), ldd * 4);
    if constexpr (has(3)) _tile_stored(3, d + offset(3, ldd), ldd * 4);
    if constexpr (has(4)) _tile_stored(4, d + offset(4, ldd), ldd * 4);
    if constexpr (has(5)) _tile_stored(5, d + offset(5, ldd), ldd * 4);
  }

  // One step of k.
  MOE_INLINE void add(const TileRun& p, const TileRun& q) {
    if constexpr (kP == 3) {
      _tile_loadd(6, q.data, q.row);
      _tile_loadd(7, p.data, p.row);
      _tile_dpbf16ps(0, 7, 6);
      _tile_loadd(7, p.data + p.tile, p.row);
      _tile_dpbf16ps(2, 7, 6);
      _tile_loadd(7, p.data + 2 * p.tile, p.row);
      _tile_dpbf16ps(4, 7, 6);
      _tile_loadd(6, q.data + q.tile, q.row);
      _tile_dpbf16ps(5, 7, 6);
      _tile_loadd(7, p.data, p.row);
      _tile_dpbf16ps(1, 7, 6);
      _tile_loadd(7, p.data + p.tile, p.row);
      _tile_dpbf16ps(3, 7, 6);
    } else if constexpr (kQ == 3) {
      _tile_loadd(6, p.data, p.row);
      _tile_loadd(7, q.data, q.row);
      _tile_dpbf16ps(0, 6, 7);
      _tile_loadd(7, q.data + q.tile, q.row);
      _tile_dpbf16ps(1, 6, 7);
      _tile_loadd(7, q.data + 2 * q.tile, q.row);
      _tile_dpbf16ps(2, 6, 7);
      _tile_loadd(6, p.data + p.tile, p.row);
      _tile_dpbf16ps(5, 6, 7);
      _tile_loadd(7, q.data, q.row);
      _tile_dpbf16ps(3, 6, 7);
      _tile_loadd(7, q.data + q.tile, q.row);
      _tile_dpbf16ps(4, 6, 7);
    } else {
      _tile_loadd(4, p.data, p.row);
      _tile_loadd(6, q.data, q.row);
      _tile_dpbf16ps(0, 4, 6);
      if constexpr (kQ > 1) {
        _tile_loadd(7, q.data + q.tile, q.row);
        _tile_dpbf16ps(1, 4, 7);
      }
      if constexpr (kP > 1) {
        _tile_loadd(5, p.data + p.tile, p.row);
        _tile_dpbf16ps(2, 5, 6);
        if constexpr (kQ > 1) _tile_dpbf16ps(3, 5, 7);
      }
    }
  }

 private:
  static constexpr int kAcross = kQ == 3 ? 3 : 2;
  static constexpr bool has(int sum) { return sum / kAcross < kP && sum % kAcross < kQ; }
  static constexpr int64_t offset(int sum, int64_t ldd) {
    return sum / kAcross * kTileSide * ldd + sum % kAcross * kTileSide;
  }
};

struct NoShadow {
  void step() const {}
};

// D[16 * kP, 16 * kQ] (+)= P Q. Tile products leave most of the core idle: shadow.step() is what else to do in each
// step, such as fetching what comes next.
template <int kP, int kQ, class Shadow>
MOE_INLINE void multiply_tiles(TileRun p, TileRun q, int64_t steps, float* d, int64_t ldd, bool accumulate,
                               Shadow& shadow) {
  using Sums = TileSums<kP, kQ>;
  tiles_touch_memory();
  if (accumulate) {
    Sums::load(d, ldd);
  } else {
    Sums::zero();
  }
  for (int64_t step = 0; step < steps; ++step) {
    Sums::add(p, q);
    p.data += p.step;
    q.data += q.step;
    shadow.step();
  }
  Sums::store(d, ldd);
  tiles_touch_memory();
}

}  // namespace moe::cpu::MOE_ISA
