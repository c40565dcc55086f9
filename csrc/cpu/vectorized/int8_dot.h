// The engine of instruction sets whose vectors run along k: four weight channels times four rows of activations, each
// pair one vector of sums that is added up at the end.
//
// A packed row of activations begins with the vector that its sums start from, then k values and zeros up to a multiple
// of 64.
#pragma once

#include <cstring>

#include "cpu/vectorized/int8_driver.h"

namespace moe::cpu::MOE_ISA {

// Vector says how many values it takes at once (kStep), how they are stored (Value) and multiplied.
template <class Vector>
struct Int8DotEngine {
  using Packed = typename Vector::Value;
  static constexpr int64_t kHeader = 64 / static_cast<int64_t>(sizeof(Packed));
  static constexpr int kRows = 4;
  static constexpr int kChannels = 4;

  static int64_t groups_at_once(int64_t) { return 1; }
  static int64_t scratch_bytes(int64_t, int64_t) { return 0; }
  static void begin() {}
  static void end() {}
  static int64_t packed_bytes(int64_t rows, int64_t padded_k) {
    return rows * (kHeader + padded_k) * static_cast<int64_t>(sizeof(Packed));
  }

  static void pack(const int8_t* const* rows, int64_t first, int64_t count, int64_t, int64_t padded_k, Packed* packed) {
    for (int64_t r = 0; r < count; ++r) {
      Packed* target = packed + (first + r) * (kHeader + padded_k);
      const int8_t* __restrict source = rows[r];
      Packed* __restrict values = target + kHeader;
      int32_t start[16] = {}, sum = 0;
      for (int64_t i = 0; i < padded_k; ++i) values[i] = source[i];
      for (int64_t i = 0; i < padded_k; ++i) sum += source[i];
      start[0] = -Vector::kWeightOffset * sum;
      memcpy(target, start, sizeof(start));
    }
  }

  static void multiply(const Packed* packed, int64_t rows, const Int8Panels* group, int64_t, int64_t k, int32_t* sums,
                       int64_t ld, void*) {
    const Int8Panels& panels = *group;
    const int64_t ldx = kHeader + int8_round_up(k, kInt8RowMultiple);
    for (int half = 0; half < 2; ++half) {
      // What comes sixteen channels later is fetched meanwhile.
      const int8_t* later = half == 0 && panels.channels[1] > 0 ? panels.panel[1] : panels.next[0];
      int32_t* target = sums + half * kInt8Panel * ld;
      int64_t c = 0;
      for (; c + kChannels <= panels.channels[half]; c += kChannels) {
        multiply_channels<kChannels>(packed, ldx, rows, panels.panel[half] + c * panels.stride, panels.stride, k,
                                     later + c * panels.stride, target + c * ld, ld);
      }
      for (; c < panels.channels[half]; ++c) {
        multiply_channels<1>(packed, ldx, rows, panels.panel[half] + c * panels.stride, panels.stride, k,
                             later + c * panels.stride, target + c * ld, ld);
      }
    }
  }

 private:
  template <int kC>
  static void multiply_channels(const Packed* x, int64_t ldx, int64_t rows, const int8_t* w, int64_t ldw, int64_t k,
                                const int8_t* later, int32_t* sums, int64_t ld) {
    int64_t i = 0;
    for (; i + kRows <= rows; i += kRows) {
      micro<kC, kRows>(x + i * ldx, ldx, w, ldw, k, i == 0 ? later : nullptr, sums + i, ld);
    }
    for (; i < rows; ++i) micro<kC, 1>(x + i * ldx, ldx, w, ldw, k, i == 0 ? later : nullptr, sums + i, ld);
  }

  template <int kC, int kR>
  static void micro(const Packed* x, int64_t ldx, const int8_t* w, int64_t ldw, int64_t k, const int8_t* later,
                    int32_t* sums, int64_t ld) {
    typename Vector::Sum sum[kC][kR];
#pragma GCC unroll 4
    for (int r = 0; r < kR; ++r) {
#pragma GCC unroll 4
      for (int c = 0; c < kC; ++c) sum[c][r] = Vector::start(x + r * ldx);
    }
    x += kHeader;
    int64_t kk = 0;
    for (; kk + Vector::kStep <= k; kk += Vector::kStep) {
      typename Vector::Weights weights[kC];
      if (later && kk % 64 == 0) {
#pragma GCC unroll 4
        for (int c = 0; c < kC; ++c) __builtin_prefetch(later + c * ldw + kk, 0, 2);
      }
#pragma GCC unroll 4
      for (int c = 0; c < kC; ++c) weights[c] = Vector::load_weights(w + c * ldw + kk);
      accumulate<kC, kR>(sum, weights, x + kk, ldx);
    }
    if (kk < k) {
      typename Vector::Weights weights[kC];
#pragma GCC unroll 4
      for (int c = 0; c < kC; ++c) weights[c] = Vector::load_last_weights(w + c * ldw + kk, k - kk);
      accumulate<kC, kR>(sum, weights, x + kk, ldx);
    }
#pragma GCC unroll 4
    for (int c = 0; c < kC; ++c) {
      if constexpr (kR == 4) {
        Vector::store_totals(sum[c], sums + c * ld);
      } else {
        static_assert(kR == 1);
        sums[c * ld] = Vector::total(sum[c][0]);
      }
    }
  }

  template <int kC, int kR>
  MOE_INLINE void accumulate(typename Vector::Sum (&sum)[kC][kR], const typename Vector::Weights (&weights)[kC],
                             const Packed* x, int64_t ldx) {
#pragma GCC unroll 4
    for (int r = 0; r < kR; ++r) {
      const typename Vector::Row row = Vector::load_row(x + r * ldx);
#pragma GCC unroll 4
      for (int c = 0; c < kC; ++c) Vector::multiply_add(sum[c][r], weights[c], row);
    }
  }
};

}  // namespace moe::cpu::MOE_ISA
