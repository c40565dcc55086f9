// Products of AMX tiles, four at a time, and how operands lie in memory for them.
//
// P gives 16 rows of 32 bfloat16 along k, Q gives 16 pairs of k by 16 columns; D = P Q is 16 by 16 float32. Two tiles
// of P and two of Q are multiplied at once, so that four products share four loads. Tile registers: 0-3 sums, 4-5 P,
// 6-7 Q.
#pragma once

#include <immintrin.h>

#include "cpu/vectorized/numeric.h"

namespace moe::cpu::MOE_ISA {

static constexpr int64_t kTile = 1024;  // bytes
static constexpr int64_t kStepK = 32;   // k of one tile
static constexpr int64_t kTileSide = 16;
static constexpr int64_t kPanel = 32;  // rows or columns of two tiles
static constexpr int64_t kPanelStep = 2 * kTile;

static constexpr int64_t steps_of(int64_t k) { return (k + kStepK - 1) / kStepK; }
static constexpr int64_t panels_of(int64_t size) { return (size + kPanel - 1) / kPanel; }
static constexpr int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// The compiler does not know what tile instructions read and write: nothing may move across this.
MOE_INLINE void tiles_touch_memory() { __atomic_signal_fence(__ATOMIC_SEQ_CST); }

// Two tiles for each step of k, by distances in bytes: between the rows of a tile, from step to step, from the first
// tile to the second.
struct TileRun {
  const char* data;
  int64_t row, step, second;

  // As packed here: whole tiles one after the other.
  static TileRun packed(const void* panel) { return {static_cast<const char*>(panel), 64, kPanelStep, kTile}; }
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

struct NoShadow {
  void step() const {}
};

// D[32, 16 * kColumns] (+)= P Q. Tile products leave most of the core idle: shadow.step() is what else to do in each
// step, such as fetching what comes next.
template <int kColumns, class Shadow>
MOE_INLINE void multiply_tiles(const TileRun& p, const TileRun& q, int64_t steps, float* d, int64_t ldd,
                               bool accumulate, Shadow& shadow) {
  const int64_t d_bytes = ldd * sizeof(float);
  float* lower = d + kTileSide * ldd;
  tiles_touch_memory();
  if (accumulate) {
    _tile_loadd(0, d, d_bytes);
    if constexpr (kColumns > 1) _tile_loadd(1, d + kTileSide, d_bytes);
    _tile_loadd(2, lower, d_bytes);
    if constexpr (kColumns > 1) _tile_loadd(3, lower + kTileSide, d_bytes);
  } else {
    _tile_zero(0);
    if constexpr (kColumns > 1) _tile_zero(1);
    _tile_zero(2);
    if constexpr (kColumns > 1) _tile_zero(3);
  }
  const char *p_at = p.data, *q_at = q.data;
  for (int64_t step = 0; step < steps; ++step) {
    _tile_loadd(4, p_at, p.row);
    _tile_loadd(6, q_at, q.row);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (kColumns > 1) {
      _tile_loadd(7, q_at + q.second, q.row);
      _tile_dpbf16ps(1, 4, 7);
    }
    _tile_loadd(5, p_at + p.second, p.row);
    _tile_dpbf16ps(2, 5, 6);
    if constexpr (kColumns > 1) _tile_dpbf16ps(3, 5, 7);
    p_at += p.step;
    q_at += q.step;
    shadow.step();
  }
  _tile_stored(0, d, d_bytes);
  if constexpr (kColumns > 1) _tile_stored(1, d + kTileSide, d_bytes);
  _tile_stored(2, lower, d_bytes);
  if constexpr (kColumns > 1) _tile_stored(3, lower + kTileSide, d_bytes);
  tiles_touch_memory();
}

template <class Shadow>
MOE_INLINE void multiply_tiles(int64_t columns, const TileRun& p, const TileRun& q, int64_t steps, float* d,
                               int64_t ldd, bool accumulate, Shadow& shadow) {
  if (columns > kTileSide) {
    multiply_tiles<2>(p, q, steps, d, ldd, accumulate, shadow);
  } else {
    multiply_tiles<1>(p, q, steps, d, ldd, accumulate, shadow);
  }
}

}  // namespace moe::cpu::MOE_ISA
