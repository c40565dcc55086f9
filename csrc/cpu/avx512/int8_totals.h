// The sums of vectors of sixteen int32.
#pragma once

#include <immintrin.h>

#include "cpu/vectorized/numeric.h"

namespace moe::cpu::MOE_ISA {

static inline void store_int32_totals(const __m512i (&sum)[4], int32_t* to) {
  __m256i half[4];
  for (int i = 0; i < 4; ++i) {
    half[i] = _mm256_add_epi32(_mm512_castsi512_si256(sum[i]), _mm512_extracti64x4_epi64(sum[i], 1));
  }
  const __m256i quarter = _mm256_hadd_epi32(_mm256_hadd_epi32(half[0], half[1]), _mm256_hadd_epi32(half[2], half[3]));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to),
                   _mm_add_epi32(_mm256_castsi256_si128(quarter), _mm256_extracti128_si256(quarter, 1)));
}

}  // namespace moe::cpu::MOE_ISA
