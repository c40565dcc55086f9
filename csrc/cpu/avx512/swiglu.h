// swiglu for results that are rounded to 16 bits: with fused multiply-adds and an estimated reciprocal, within 4 ulp of
// float32. The functions of vectorized/math.h, the same on every instruction set, would be most of a layer's epilogues.
#pragma once

#include <immintrin.h>

#include "cpu/avx512/vector.h"
#include "cpu/vectorized/epilogue.h"

namespace moe::cpu::MOE_ISA {

// 1 / (1 + e^-x); 0 for x below -87, NaN for NaN.
MOE_INLINE __m512 fast_sigmoid(__m512 x) {
  const __m512 lowest = _mm512_set1_ps(-87.0f), one = _mm512_set1_ps(1.0f);
  const __mmask16 is_tiny = _mm512_cmp_ps_mask(x, lowest, _CMP_LT_OQ);
  // -x log2(e) = n + r with |r| <= 1/2; max() hands on its second operand where one is NaN.
  const __m512 t = _mm512_mul_ps(_mm512_max_ps(lowest, x), _mm512_set1_ps(-1.44269504f));
  const __m512 n = _mm512_roundscale_ps(t, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 r = _mm512_sub_ps(t, n);
  // 2^r: Taylor's series of e^(r ln 2), whose next term is below 2^-24.
  __m512 p = _mm512_set1_ps(1.5403530e-4f);
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.3333558e-3f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(9.6181291e-3f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.5504109e-2f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(2.4022651e-1f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(6.9314718e-1f));
  p = _mm512_fmadd_ps(p, r, one);
  const __m512 d = _mm512_add_ps(one, _mm512_scalef_ps(p, n));
  const __m512 estimate = _mm512_rcp14_ps(d);
  const __m512 refined = _mm512_fmadd_ps(estimate, _mm512_fnmadd_ps(d, estimate, one), estimate);
  return _mm512_mask_mov_ps(refined, is_tiny, _mm512_setzero_ps());
}

MOE_INLINE __m512 fast_swiglu(__m512 gate, __m512 up) {
  return _mm512_mul_ps(_mm512_mul_ps(gate, fast_sigmoid(gate)), up);
}

struct SwigluGradient {
  __m512 act, grad_gate, grad_up;

  // grad is the gradient of act.
  __attribute__((always_inline)) SwigluGradient(__m512 gate, __m512 up, __m512 grad) {
    const __m512 one = _mm512_set1_ps(1.0f), sigmoid = fast_sigmoid(gate);
    const __m512 silu = _mm512_mul_ps(gate, sigmoid);
    // silu' = sigmoid (1 + gate (1 - sigmoid)) = sigmoid + silu (1 - sigmoid)
    const __m512 slope = _mm512_fmadd_ps(silu, _mm512_sub_ps(one, sigmoid), sigmoid);
    act = _mm512_mul_ps(silu, up);
    grad_gate = _mm512_mul_ps(_mm512_mul_ps(grad, up), slope);
    grad_up = _mm512_mul_ps(grad, silu);
  }
};

template <>
struct Activate<Activation::kSwiglu, bf16> {
  static_assert(kMaxColumns % 16 == 0);
  static void forward(const float* gate, const float* up, int64_t count, float, float, float* act) {
    for (int64_t j = 0; j < count; j += 16) {
      _mm512_storeu_ps(act + j, fast_swiglu(_mm512_loadu_ps(gate + j), _mm512_loadu_ps(up + j)));
    }
  }
  static void backward(const float* gate, const float* up, const float* grad, int64_t count, float, float, float* act,
                       float* grad_gate, float* grad_up) {
    for (int64_t j = 0; j < count; j += 16) {
      const SwigluGradient g(_mm512_loadu_ps(gate + j), _mm512_loadu_ps(up + j), _mm512_loadu_ps(grad + j));
      _mm512_storeu_ps(act + j, g.act);
      _mm512_storeu_ps(grad_gate + j, g.grad_gate);
      _mm512_storeu_ps(grad_up + j, g.grad_up);
    }
  }
};

}  // namespace moe::cpu::MOE_ISA
