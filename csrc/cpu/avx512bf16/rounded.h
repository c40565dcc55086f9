// Floats rounded to bfloat16, 32 at a time. Values below the normal numbers become zero, as they do in the products
// that they come from.
#pragma once

#include <immintrin.h>

#include "cpu/avx512/vector.h"
#include "cpu/vectorized/epilogue.h"

namespace moe::cpu::MOE_ISA {

template <>
struct Rounded<bf16> {
  static constexpr int64_t kLine = 32;

  static void store(const float* source, bf16* target, int64_t count) {
    for (; count >= kLine; count -= kLine, source += kLine, target += kLine) {
      _mm512_storeu_si512(target, round(_mm512_loadu_ps(source), _mm512_loadu_ps(source + 16)));
    }
    if (count > 0) store_part(source, target, count);
  }

  static void stream(const float* source, bf16* target, int64_t count) {
    const int64_t past = reinterpret_cast<uintptr_t>(target) / sizeof(bf16) % kLine;
    if (past > 0) {
      const int64_t head = kLine - past < count ? kLine - past : count;
      store_part(source, target, head);
      source += head, target += head, count -= head;
    }
    for (; count >= kLine; count -= kLine, source += kLine, target += kLine) {
      _mm512_stream_si512(reinterpret_cast<__m512i*>(target),
                          round(_mm512_loadu_ps(source), _mm512_loadu_ps(source + 16)));
    }
    if (count > 0) store_part(source, target, count);
  }

 private:
  static __m512i round(__m512 low, __m512 high) { return (__m512i)_mm512_cvtne2ps_pbh(high, low); }

  // Fewer than a line.
  static void store_part(const float* source, bf16* target, int64_t count) {
    const uint32_t mask = (1u << count) - 1;
    const __m512 low = _mm512_maskz_loadu_ps(static_cast<__mmask16>(mask), source);
    const __m512 high = _mm512_maskz_loadu_ps(static_cast<__mmask16>(mask >> 16), source + 16);
    _mm512_mask_storeu_epi16(target, mask, round(low, high));
  }
};

}  // namespace moe::cpu::MOE_ISA
