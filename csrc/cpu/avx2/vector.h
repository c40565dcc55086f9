// Vectors of eight floats with fused multiply-add.
#pragma once

#include <immintrin.h>

#include "cpu/vectorized/numeric.h"

namespace moe::cpu::MOE_ISA {

struct Avx2Vector {
  using Lane = float;
  using Acc = float;
  static constexpr int kWidth = 8;
  __m256 value = _mm256_setzero_ps();

  Avx2Vector() = default;
  explicit Avx2Vector(__m256 v) : value(v) {}
  static Avx2Vector load(const float* from) { return Avx2Vector(_mm256_loadu_ps(from)); }
  static Avx2Vector load(const bf16* from) {
    const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
    return Avx2Vector(_mm256_castsi256_ps(_mm256_slli_epi32(wide, 16)));
  }
  static Avx2Vector load(const fp16* from) {
    return Avx2Vector(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
  }
  static Avx2Vector load_sum(const float* from) { return load(from); }
  static Avx2Vector broadcast(const float* from) { return Avx2Vector(_mm256_broadcast_ss(from)); }
  void multiply_add(const Avx2Vector& a, const Avx2Vector& b) { value = _mm256_fmadd_ps(a.value, b.value, value); }
  void add(const Avx2Vector& other) { value += other.value; }
  void store_sum(float* to) const { _mm256_storeu_ps(to, value); }
};

static inline void transpose8(__m256 (&r)[8]) {
  __m256 t[8];
  for (int i = 0; i < 4; ++i) {
    t[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
  }
  __m256 u[8];
  for (int i = 0; i < 2; ++i) {
    u[4 * i] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0x44);
    u[4 * i + 1] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0xee);
    u[4 * i + 2] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0x44);
    u[4 * i + 3] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0xee);
  }
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm256_permute2f128_ps(u[i], u[4 + i], 0x20);
    r[4 + i] = _mm256_permute2f128_ps(u[i], u[4 + i], 0x31);
  }
}

static inline void transpose16_rows(const float* const* rows, float* target, int64_t ldt) {
  for (int64_t r0 = 0; r0 < 16; r0 += 8) {
    for (int64_t c0 = 0; c0 < 16; c0 += 8) {
      __m256 block[8];
      for (int r = 0; r < 8; ++r) block[r] = _mm256_loadu_ps(rows[r0 + r] + c0);
      transpose8(block);
      for (int c = 0; c < 8; ++c) _mm256_storeu_ps(target + (c0 + c) * ldt + r0, block[c]);
    }
  }
}

static inline void transpose16(const float* source, int64_t lds, float* target, int64_t ldt) {
  const float* rows[16];
  for (int64_t r = 0; r < 16; ++r) rows[r] = source + r * lds;
  transpose16_rows(rows, target, ldt);
}

}  // namespace moe::cpu::MOE_ISA
