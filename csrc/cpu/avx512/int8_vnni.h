// int8 products on AVX-512 with VNNI, whose dot product takes one factor without sign: a weight goes in 128 too large,
// and sums start at what that adds too much.
#pragma once

#include "cpu/avx512/int8_totals.h"
#include "cpu/avx512/vector.h"
#include "cpu/vectorized/int8_dot.h"

namespace moe::cpu::MOE_ISA {

struct VnniVector {
  using Value = int8_t;
  using Weights = __m512i;
  using Row = __m512i;
  using Sum = __m512i;
  static constexpr int64_t kStep = 64;
  static constexpr int32_t kWeightOffset = 128;

  static Sum start(const Value* row) { return _mm512_loadu_si512(row); }
  static Weights load_weights(const int8_t* from) { return plus128(_mm512_loadu_si512(from)); }
  static Weights load_last_weights(const int8_t* from, int64_t count) {
    return plus128(_mm512_maskz_loadu_epi8((uint64_t{1} << count) - 1, from));
  }
  static Row load_row(const Value* from) { return _mm512_loadu_si512(from); }
  static void multiply_add(Sum& sum, const Weights& weights, const Row& row) {
    sum = _mm512_dpbusd_epi32(sum, weights, row);
  }
  static void store_totals(const Sum (&sum)[4], int32_t* to) { store_int32_totals(sum, to); }
  static int32_t total(const Sum& sum) { return _mm512_reduce_add_epi32(sum); }

 private:
  static __m512i plus128(__m512i x) { return _mm512_xor_si512(x, _mm512_set1_epi8(-128)); }
};

}  // namespace moe::cpu::MOE_ISA
