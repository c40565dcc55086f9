// Vectors of sixteen floats.
#pragma once

#include <immintrin.h>

#include "cpu/vectorized/numeric.h"

namespace moe::cpu::MOE_ISA {

struct EightFloats {
  using Lane = float;
  using Acc = float;
  static constexpr int kWidth = 8;
  __m256 value = _mm256_setzero_ps();

  EightFloats() = default;
  explicit EightFloats(__m256 v) : value(v) {}
  static EightFloats load(const float* from) { return EightFloats(_mm256_loadu_ps(from)); }
  static EightFloats load_sum(const float* from) { return load(from); }
  static EightFloats broadcast(const float* from) { return EightFloats(_mm256_set1_ps(*from)); }
  void multiply_add(const EightFloats& a, const EightFloats& b) { value = _mm256_fmadd_ps(a.value, b.value, value); }
  void add(const EightFloats& other) { value += other.value; }
  void store_sum(float* to) const { _mm256_storeu_ps(to, value); }
};

struct Avx512Vector {
  using Lane = float;
  using Acc = float;
  using Half = EightFloats;
  static constexpr int kWidth = 16;
  __m512 value = _mm512_setzero_ps();

  Avx512Vector() = default;
  explicit Avx512Vector(__m512 v) : value(v) {}
  static Avx512Vector load(const float* from) { return Avx512Vector(_mm512_loadu_ps(from)); }
  static Avx512Vector load(const bf16* from) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
    return Avx512Vector(_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16)));
  }
  static Avx512Vector load(const fp16* from) {
    return Avx512Vector(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))));
  }
  static Avx512Vector load_sum(const float* from) { return load(from); }
  static Avx512Vector broadcast(const float* from) { return Avx512Vector(_mm512_set1_ps(*from)); }
  void multiply_add(const Avx512Vector& a, const Avx512Vector& b) { value = _mm512_fmadd_ps(a.value, b.value, value); }
  void add(const Avx512Vector& other) { value += other.value; }
  void store_sum(float* to) const { _mm512_storeu_ps(to, value); }
};

// Sixteen rows of sixteen 32-bit lanes: pairs, quads, then whole 128-bit lanes change places.
static inline void transpose16_rows(const float* const* rows, float* target, int64_t ldt) {
  __m512i r[16], t[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) r[i] = _mm512_loadu_si512(rows[i]);
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
    r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
  }
  // r[4q + c] holds, in 128-bit lane l, column 4l + c of rows 4q .. 4q + 3.
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    const __m512i low01 = _mm512_shuffle_i32x4(r[c], r[4 + c], 0x44);
    const __m512i high01 = _mm512_shuffle_i32x4(r[c], r[4 + c], 0xee);
    const __m512i low23 = _mm512_shuffle_i32x4(r[8 + c], r[12 + c], 0x44);
    const __m512i high23 = _mm512_shuffle_i32x4(r[8 + c], r[12 + c], 0xee);
    _mm512_storeu_si512(target + c * ldt, _mm512_shuffle_i32x4(low01, low23, 0x88));
    _mm512_storeu_si512(target + (4 + c) * ldt, _mm512_shuffle_i32x4(low01, low23, 0xdd));
    _mm512_storeu_si512(target + (8 + c) * ldt, _mm512_shuffle_i32x4(high01, high23, 0x88));
    _mm512_storeu_si512(target + (12 + c) * ldt, _mm512_shuffle_i32x4(high01, high23, 0xdd));
  }
}

static inline void transpose16(const float* source, int64_t lds, float* target, int64_t ldt) {
  const float* rows[16];
#pragma GCC unroll 16
  for (int64_t r = 0; r < 16; ++r) rows[r] = source + r * lds;
  transpose16_rows(rows, target, ldt);
}

}  // namespace moe::cpu::MOE_ISA
