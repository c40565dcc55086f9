// int8 products on AVX2: widened to int16 and multiplied pairwise, which is exact.
#define MOE_ISA avx2_int8
#include "cpu/avx2/vector.h"
#include "cpu/vectorized/int8_dot.h"

namespace moe::cpu {

namespace avx2_int8 {

struct Avx2Int8Vector {
  using Value = int16_t;
  using Weights = __m256i;
  using Row = __m256i;
  using Sum = __m256i;
  static constexpr int64_t kStep = 16;
  static constexpr int32_t kWeightOffset = 0;

  static Sum start(const Value* row) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row)); }
  static Weights load_weights(const int8_t* from) {
    return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  }
  static Weights load_last_weights(const int8_t* from, int64_t count) {
    int8_t block[kStep] = {};
    for (int64_t i = 0; i < count; ++i) block[i] = from[i];
    return load_weights(block);
  }
  static Row load_row(const Value* from) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)); }
  static void multiply_add(Sum& sum, const Weights& weights, const Row& row) {
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(weights, row));
  }
  static void store_totals(const Sum (&sum)[4], int32_t* to) {
    const __m256i halves = _mm256_hadd_epi32(_mm256_hadd_epi32(sum[0], sum[1]), _mm256_hadd_epi32(sum[2], sum[3]));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to),
                     _mm_add_epi32(_mm256_castsi256_si128(halves), _mm256_extracti128_si256(halves, 1)));
  }
  static int32_t total(const Sum& sum) {
    const Sum one[4] = {sum, _mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256()};
    int32_t totals[4];
    store_totals(one, totals);
    return totals[0];
  }
};

}  // namespace avx2_int8

const Int8Kernels& avx2_int8_kernels() {
  static constexpr Int8Kernels table = avx2_int8::int8_table<avx2_int8::Int8DotEngine<avx2_int8::Avx2Int8Vector>>();
  return table;
}

}  // namespace moe::cpu
