// The AMX engine: tiles of 16 rows of 64 bytes, two by two, so that four tile products share four tile loads.
// Tile registers: 0-3 sums, 4-5 two tiles of P (16 rows of 32 bfloat16 along k), 6-7 two tiles of Q (16 pairs of k by
// 16 columns).
#pragma once

#include "cpu/amx/tiles.h"
#include "cpu/avx512/vector.h"
#include "cpu/vectorized/engines.h"

namespace moe::cpu::MOE_ISA {

struct AmxEngine : PairPacking<32, 32> {
  static constexpr int64_t kP = 32;
  static constexpr int64_t kQ = 32;
  static constexpr int64_t kStep = 32;
  static constexpr int64_t kGroup = 32;
  // A block continues the sums in the tiles where the one before stopped, so its length changes no result.
  static constexpr int64_t kKBlock = 1024;
  static constexpr int64_t kKBlockOfFewRows = 256;
  static constexpr int64_t kSuper = 256;
  static constexpr int64_t kMChunk = 288;

  static void begin() { begin_tiles(); }
  static void end() { end_tiles(); }
  static int64_t q_width(int64_t outer) { return round_up(outer, 16); }

  template <bool>
  static void micro(bool, const bf16* p, int64_t ldp, int64_t p_rows, const bf16* q, int64_t width, int64_t k, float* d,
                    int64_t ldd, bool accumulate) {
    if (p_rows > 16) {
      if (width > 16) {
        multiply<2, 2>(p, ldp, q, k, d, ldd, accumulate);
      } else {
        multiply<2, 1>(p, ldp, q, k, d, ldd, accumulate);
      }
    } else if (width > 16) {
      multiply<1, 2>(p, ldp, q, k, d, ldd, accumulate);
    } else {
      multiply<1, 1>(p, ldp, q, k, d, ldd, accumulate);
    }
  }

 private:
  template <int kRows, int kColumns>
  static inline __attribute__((always_inline)) void multiply(const bf16* p, int64_t ldp, const bf16* q, int64_t k,
                                                             float* d, int64_t ldd, bool accumulate) {
    const int64_t d_bytes = ldd * sizeof(float), p_bytes = ldp * sizeof(bf16), q_bytes = kColumns * 64;
    if (accumulate) {
      _tile_loadd(0, d, d_bytes);
      if constexpr (kColumns > 1) _tile_loadd(1, d + 16, d_bytes);
      if constexpr (kRows > 1) _tile_loadd(2, d + 16 * ldd, d_bytes);
      if constexpr (kRows > 1 && kColumns > 1) _tile_loadd(3, d + 16 * ldd + 16, d_bytes);
    } else {
      _tile_zero(0);
      if constexpr (kColumns > 1) _tile_zero(1);
      if constexpr (kRows > 1) _tile_zero(2);
      if constexpr (kRows > 1 && kColumns > 1) _tile_zero(3);
    }
    for (int64_t kk = 0; kk < k; kk += 32) {
      _tile_loadd(4, p + kk, p_bytes);
      _tile_loadd(6, q + kk * kColumns * 16, q_bytes);
      _tile_dpbf16ps(0, 4, 6);
      if constexpr (kColumns > 1) {
        _tile_loadd(7, q + kk * kColumns * 16 + 32, q_bytes);
        _tile_dpbf16ps(1, 4, 7);
      }
      if constexpr (kRows > 1) {
        _tile_loadd(5, p + 16 * ldp + kk, p_bytes);
        _tile_dpbf16ps(2, 5, 6);
        if constexpr (kColumns > 1) _tile_dpbf16ps(3, 5, 7);
      }
    }
    _tile_stored(0, d, d_bytes);
    if constexpr (kColumns > 1) _tile_stored(1, d + 16, d_bytes);
    if constexpr (kRows > 1) _tile_stored(2, d + 16 * ldd, d_bytes);
    if constexpr (kRows > 1 && kColumns > 1) _tile_stored(3, d + 16 * ldd + 16, d_bytes);
  }
};

}  // namespace moe::cpu::MOE_ISA
