// int8 products on AVX-512 without VNNI: widened to int16 and multiplied pairwise, which is exact.
#define MOE_ISA avx512_int8
#include "cpu/avx512/int8_totals.h"
#include "cpu/avx512/vector.h"
#include "cpu/vectorized/int8_dot.h"

namespace moe::cpu {

namespace avx512_int8 {

struct Avx512Int8Vector {
  using Value = int16_t;
  using Weights = __m512i;
  using Row = __m512i;
  using Sum = __m512i;
  static constexpr int64_t kStep = 32;
  static constexpr int32_t kWeightOffset = 0;

  static Sum start(const Value* row) { return _mm512_loadu_si512(row); }
  static Weights load_weights(const int8_t* from) {
    return _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  }
  static Weights load_last_weights(const int8_t* from, int64_t count) {
    return _mm512_cvtepi8_epi16(_mm256_maskz_loadu_epi8((1u << count) - 1, from));
  }
  static Row load_row(const Value* from) { return _mm512_loadu_si512(from); }
  static void multiply_add(Sum& sum, const Weights& weights, const Row& row) {
    sum = _mm512_add_epi32(sum, _mm512_madd_epi16(weights, row));
  }
  static void store_totals(const Sum (&sum)[4], int32_t* to) { store_int32_totals(sum, to); }
  static int32_t total(const Sum& sum) { return _mm512_reduce_add_epi32(sum); }
};

}  // namespace avx512_int8

const Int8Kernels& avx512_int8_kernels() {
  static constexpr Int8Kernels table =
      avx512_int8::int8_table<avx512_int8::Int8DotEngine<avx512_int8::Avx512Int8Vector>>();
  return table;
}

}  // namespace moe::cpu
