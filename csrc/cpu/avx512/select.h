// Steps of route that gain from instructions of their own: compressed stores, and divisions, which are slow on sixteen
// lanes, replaced by multiplications that give the same bits.
#pragma once

#include <immintrin.h>

#include "cpu/vectorized/numeric.h"

namespace moe::cpu::MOE_ISA::routing {

// The values that are at least `threshold` and where they stand, in order; `count` is a multiple of 16. Returns how
// many there are; from most + 1 on, which is no more than there are, it stops. `found` and `places` hold most + 16.
static inline int64_t collect(const float* __restrict values, int64_t count, float threshold, int64_t most,
                              float* __restrict found, int32_t* __restrict places) {
  const __m512 limit = _mm512_set1_ps(threshold), none = _mm512_set1_ps(-__builtin_inff());
  const __m512i step = _mm512_set1_epi32(16);
  __m512i place = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  int64_t n = 0;
  for (int64_t i = 0; i < count && n <= most; i += 16) {
    const __m512 x = _mm512_loadu_ps(values + i);
    const __mmask16 chosen = _mm512_cmp_ps_mask(x, limit, _CMP_GE_OQ);
    _mm512_storeu_ps(found + n, _mm512_mask_compress_ps(none, chosen, x));
    _mm512_storeu_si512(places + n, _mm512_maskz_compress_epi32(chosen, place));
    n += __builtin_popcount(chosen);
    place = _mm512_add_epi32(place, step);
  }
  return n;
}

// x = 1 / x for x in [1, 2^100], to the last bit: an estimate of 14 bits is doubled twice, and the last step rounds
// as the division would, save where all bits of the fraction are set: there it rounds down what lies just above the
// middle.
static inline void reciprocals(float* __restrict x, int64_t count) {
  const __m512 one = _mm512_set1_ps(1.0f);
  const __m512i fraction = _mm512_set1_epi32(0x7fffff), unit = _mm512_set1_epi32(1);
  for (int64_t i = 0; i < count; i += 16) {
    const __m512 d = _mm512_loadu_ps(x + i);
    __m512 y = _mm512_rcp14_ps(d);
    y = _mm512_fmadd_ps(_mm512_fnmadd_ps(d, y, one), y, y);
    y = _mm512_fmadd_ps(_mm512_fnmadd_ps(d, y, one), y, y);
    const __m512i clear = _mm512_andnot_si512(_mm512_castps_si512(d), fraction);
    const __m512i bits = _mm512_castps_si512(y);
    _mm512_storeu_si512(x + i, _mm512_mask_add_epi32(bits, _mm512_testn_epi32_mask(clear, clear), bits, unit));
  }
}

// out = x / divisor for 1 <= divisor < 2^32 and x that are 0 or in [2^-93, 1], to the last bit: the quotient's error
// is computed exactly and taken off, first to be within one unit in the last place, then to be rounded right.
static inline void quotients(const float* __restrict x, float divisor, float* __restrict out, int64_t count) {
  const __m512 d = _mm512_set1_ps(divisor), y = _mm512_set1_ps(1.0f / divisor);
  for (int64_t i = 0; i < count; i += 16) {
    const __m512 a = _mm512_loadu_ps(x + i);
    __m512 q = _mm512_mul_ps(a, y);
    q = _mm512_fmadd_ps(_mm512_fnmadd_ps(q, d, a), y, q);
    q = _mm512_fmadd_ps(_mm512_fnmadd_ps(q, d, a), y, q);
    _mm512_storeu_ps(out + i, q);
  }
}

}  // namespace moe::cpu::MOE_ISA::routing
