// Float32 and float16 on AMX tiles, which multiply bfloat16: each number is split into parts (cpu/amx/split.h) and the
// parts are multiplied with one another, the small products first.
//
//   float32, 6 products: low*high, middle*high, middle*middle, high*middle, high*low, high*high
//   float16, 4 products: all
//
// The three products that float32 leaves out are below 2^-24 of the number's product, as is the rounding of a
// float32 multiplication. A tile sums the sixteen pairs of a step from zero before it adds them, and a block of k
// starts from zero too, so a long sum has fewer roundings than one chain of fused multiply-adds.
//
// What a part that is NaN or infinite would do to a sum is undone by cpu/amx/split_nonfinite.h.
#pragma once

#include "cpu/amx/engine.h"
#include "cpu/amx/split.h"

namespace moe::cpu::MOE_ISA {

template <int kParts>
struct SplitEngine : SplitPacking<kParts, 32, 32> {
  using Packing = SplitPacking<kParts, 32, 32>;
  using typename Packing::Packed;
  static constexpr int64_t kP = 32;
  static constexpr int64_t kQ = 32;
  static constexpr int64_t kGroup = 32;
  // A P panel of a block stays within half the L1 cache. Also the length of one chain of additions.
  static constexpr int64_t kKBlock = 128;
  static constexpr int64_t kKBlockOfFewRows = kKBlock;
  static constexpr int64_t kSuper = 256;
  static constexpr int64_t kMChunk = 288;
  static constexpr bool kOrdersByOperand = true;

  static void begin() { AmxEngine::begin(); }
  static void end() { AmxEngine::end(); }
  static int64_t q_width(int64_t outer) { return round_up(outer, 16); }

  template <bool kPIsB>
  static void micro(bool, const Packed* p, int64_t ldp, int64_t p_rows, const Packed* q, int64_t width, int64_t k,
                    float* d, int64_t ldd, bool accumulate) {
    NoShadow none;
    micro_over<kPIsB>(none, p, ldp, p_rows, q, width, k, d, ldd, accumulate);
  }

  // The same, with other work in the shadow of the tile products: shadow.step() is called after each group of them.
  template <bool kPIsB, class Shadow>
  static void micro_over(Shadow& shadow, const Packed* p, int64_t ldp, int64_t p_rows, const Packed* q, int64_t width,
                         int64_t k, float* d, int64_t ldd, bool accumulate) {
    if (p_rows > 16) {
      if (width > 16) {
        multiply<kPIsB, 2, 2>(shadow, p, ldp, q, k, d, ldd, accumulate);
      } else {
        multiply<kPIsB, 2, 1>(shadow, p, ldp, q, k, d, ldd, accumulate);
      }
    } else if (width > 16) {
      multiply<kPIsB, 1, 2>(shadow, p, ldp, q, k, d, ldd, accumulate);
    } else {
      multiply<kPIsB, 1, 1>(shadow, p, ldp, q, k, d, ldd, accumulate);
    }
  }
  // All of k for one panel of P, whose steps `ahead` leaves in its ring one by one; sums as micro() forms them.
  template <class Ahead>
  static void stream(Ahead& ahead, int64_t first_step, int64_t p_rows, const Packed* q, int64_t width, int64_t steps,
                     float* d, int64_t ldd) {
    if (p_rows > 16) {
      if (width > 16) {
        stream_tiles<2, 2>(ahead, first_step, q, steps, d, ldd);
      } else {
        stream_tiles<2, 1>(ahead, first_step, q, steps, d, ldd);
      }
    } else if (width > 16) {
      stream_tiles<1, 2>(ahead, first_step, q, steps, d, ldd);
    } else {
      stream_tiles<1, 1>(ahead, first_step, q, steps, d, ldd);
    }
  }

  static constexpr int64_t kProductsOfStep = kParts == 3 ? 6 : 4;

  static void transpose(const float* source, int64_t lds, int64_t rows, int64_t columns, float* target, int64_t ldt) {
    transpose_block(source, lds, rows, columns, target, ldt);
  }

 private:
  static constexpr int64_t kLine = 64;

  struct NoShadow {
    void step() {}
  };

  // Tile registers as in AmxEngine: 0-3 sums, 4-5 P, 6-7 Q.
  template <int kRows, int kColumns>
  struct Tiles {
    const char* p;
    int64_t p_stride;
    const char* q;

    inline __attribute__((always_inline)) void load_p(int part) const {
      _tile_loadd(4, p + part * kLine, p_stride);
      if constexpr (kRows > 1) _tile_loadd(5, p + part * kLine + 16 * p_stride, p_stride);
    }
    inline __attribute__((always_inline)) void load_q(int part) const {
      const char* at = q + part * kSplitPairs * kColumns * kLine;
      _tile_loadd(6, at, kColumns * kLine);
      if constexpr (kColumns > 1) _tile_loadd(7, at + kLine, kColumns * kLine);
    }
    static inline __attribute__((always_inline)) void product() {
      _tile_dpbf16ps(0, 4, 6);
      if constexpr (kColumns > 1) _tile_dpbf16ps(1, 4, 7);
      if constexpr (kRows > 1) _tile_dpbf16ps(2, 5, 6);
      if constexpr (kRows > 1 && kColumns > 1) _tile_dpbf16ps(3, 5, 7);
    }
    // The order goes by A and B, whichever of them is P: then the bits do not depend on it.
    template <bool kPIsB, class Shadow>
    inline __attribute__((always_inline)) void step(Shadow& shadow) const {
      constexpr int kHigh = 0, kMiddle = 1, kLow = 2;
      const auto load_a = [&](int part) __attribute__((always_inline)) { kPIsB ? load_q(part) : load_p(part); };
      const auto load_b = [&](int part) __attribute__((always_inline)) { kPIsB ? load_p(part) : load_q(part); };
      const auto multiply = [&]() __attribute__((always_inline)) { product(), shadow.step(); };
      if constexpr (kParts == 3) {
        load_a(kLow), load_b(kHigh), multiply();
        load_a(kMiddle), multiply();
        load_b(kMiddle), multiply();
        load_a(kHigh), multiply();
        load_b(kLow), multiply();
        load_b(kHigh), multiply();
      } else {
        load_a(kMiddle), load_b(kMiddle), multiply();
        load_a(kHigh), multiply();
        load_a(kMiddle), load_b(kHigh), multiply();
        load_a(kHigh), multiply();
      }
    }
  };

  template <bool kPIsB, int kRows, int kColumns, class Shadow>
  static void multiply(Shadow& shadow, const Packed* p, int64_t ldp, const Packed* q, int64_t k, float* d, int64_t ldd,
                       bool accumulate) {
    Tiles<kRows, kColumns> tiles = {reinterpret_cast<const char*>(p), static_cast<int64_t>(ldp * sizeof(Packed)),
                                    reinterpret_cast<const char*>(q)};
    zero_sums<kRows, kColumns>();
    for (int64_t kk = 0; kk < k; kk += kSplitStep) {
      tiles.template step<kPIsB>(shadow);
      tiles.p += kParts * kLine;
      tiles.q += kParts * kSplitPairs * kColumns * kLine;
    }
    store_sums<kRows, kColumns>(d, ldd, accumulate);
  }

  template <int kRows, int kColumns, class Ahead>
  static void stream_tiles(Ahead& ahead, int64_t first_step, const Packed* q, int64_t steps, float* d, int64_t ldd) {
    constexpr int64_t kBlockSteps = kKBlock / kSplitStep;
    Tiles<kRows, kColumns> tiles = {nullptr, kParts * kLine, reinterpret_cast<const char*>(q)};
    for (int64_t s = 0; s < steps; ++s) {
      if (s % kBlockSteps == 0) zero_sums<kRows, kColumns>();
      tiles.p = ahead.slot(first_step + s);
      tiles.template step<true>(ahead);
      ahead.finish_step();
      tiles.q += kParts * kSplitPairs * kColumns * kLine;
      if (s % kBlockSteps == kBlockSteps - 1 || s == steps - 1) {
        store_sums<kRows, kColumns>(d, ldd, s >= kBlockSteps);
      }
    }
  }

  template <int kRows, int kColumns>
  static inline __attribute__((always_inline)) void zero_sums() {
    _tile_zero(0);
    if constexpr (kColumns > 1) _tile_zero(1);
    if constexpr (kRows > 1) _tile_zero(2);
    if constexpr (kRows > 1 && kColumns > 1) _tile_zero(3);
  }

  template <int kRows, int kColumns>
  static inline __attribute__((always_inline)) void store_sums(float* d, int64_t ldd, bool accumulate) {
    alignas(64) float sums[kRows * 16][kColumns * 16];
    float* to = accumulate ? sums[0] : d;
    const int64_t ld = accumulate ? kColumns * 16 : ldd, bytes = ld * sizeof(float);
    _tile_stored(0, to, bytes);
    if constexpr (kColumns > 1) _tile_stored(1, to + 16, bytes);
    if constexpr (kRows > 1) _tile_stored(2, to + 16 * ld, bytes);
    if constexpr (kRows > 1 && kColumns > 1) _tile_stored(3, to + 16 * ld + 16, bytes);
    if (!accumulate) return;
    for (int i = 0; i < kRows * 16; ++i) {
#pragma GCC unroll 2
      for (int j = 0; j < kColumns * 16; j += 16) {
        _mm512_storeu_ps(d + i * ldd + j, _mm512_add_ps(_mm512_loadu_ps(d + i * ldd + j), _mm512_load_ps(&sums[i][j])));
      }
    }
  }
};

}  // namespace moe::cpu::MOE_ISA
