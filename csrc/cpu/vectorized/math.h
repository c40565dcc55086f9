// Elementary functions without branches or table look-ups, so that loops over them vectorise. float is computed here,
// double is left to the C library.
//
// Nothing is contracted to fused multiply-adds (-ffp-contract=off), so every instruction set gives the same bits.
// Coefficients: minimax fits made for this file. Each was found by iteratively reweighted least squares (Lawson's
// algorithm) in double precision on 3000 Chebyshev nodes, in a Chebyshev basis, against 40-digit values, weighted so
// that the error of the final function is what is minimised; then rounded to float. tests/cpu/test_math.py holds the
// error bounds.
#pragma once

#include "cpu/vectorized/numeric.h"

namespace moe::cpu::MOE_ISA {

MOE_INLINE float infinity(float) { return __builtin_inff(); }
MOE_INLINE double infinity(double) { return __builtin_inf(); }

// For the ordering of floats without NaN, which is all that these are used for; a NaN in x comes out again.
MOE_INLINE float at_most(float x, float limit) { return x > limit ? limit : x; }
MOE_INLINE float at_least(float x, float limit) { return x < limit ? limit : x; }

inline constexpr float kExpMagic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, left in the low bits

// e^r where x = n ln(2) + r, |r| <= ln(2)/2 and shifted = n + kExpMagic.
MOE_INLINE float exp_of_rest(float x, float shifted) {
  const float n = shifted - kExpMagic;
  const float r = (x - n * 0.693359375f) - n * -2.12194440e-4f;  // ln(2) in two parts, the first product is exact
  float q = 1.39463681e-3f + 1.99187838e-4f * r;
  q = 8.33326392e-3f + q * r;
  q = 4.16662656e-2f + q * r;
  q = 1.66666672e-1f + q * r;
  q = 0.5f + q * r;
  return 1.0f + (r + (r * r) * q);
}

// e^x. Within 1.5 ulp, subnormal results included; +inf and 0 past the ends, NaN for NaN.
MOE_INLINE float exp(float x) {
  // e^x = 2^n * e^r with |r| <= ln(2)/2. Beyond these limits the result has long been infinite or 0.
  x = at_least(at_most(x, 89.0f), -104.0f);
  const float shifted = x * 1.44269504f + kExpMagic;
  const float p = exp_of_rest(x, shifted);
  // 2^n in two steps: n runs from -150 to 128, a float's exponent from -126 to 127. Only the second one rounds.
  const int32_t exponent = bits_of(shifted) - bits_of(kExpMagic);
  const int32_t first = exponent >> 1;
  const uint32_t scale0 = static_cast<uint32_t>(first + 127) << 23;
  const uint32_t scale1 = static_cast<uint32_t>(exponent - first + 127) << 23;
  return (p * float_of(static_cast<int32_t>(scale0))) * float_of(static_cast<int32_t>(scale1));
}
MOE_INLINE double exp(double x) { return __builtin_exp(x); }

// e^x for x <= 0 or NaN, in fewer steps. Below -87, where results would soon be subnormal, it is 0.
MOE_INLINE float exp_of_negative(float x) {
  const float shifted = x * 1.44269504f + kExpMagic;
  const uint32_t scale = static_cast<uint32_t>(bits_of(shifted) - bits_of(kExpMagic) + 127) << 23;
  const float result = exp_of_rest(x, shifted) * float_of(static_cast<int32_t>(scale));
  return x < -87.0f ? 0.0f : result;
}
MOE_INLINE double exp_of_negative(double x) { return __builtin_exp(x); }

// 1 / (1 + e^-x).
MOE_INLINE float sigmoid(float x) { return 1.0f / (1.0f + exp(-x)); }
MOE_INLINE double sigmoid(double x) { return 1.0 / (1.0 + __builtin_exp(-x)); }

// log(1 + u) for u in [0, 1], precise relative to the result: 2 atanh(u / (2 + u)).
MOE_INLINE float log1p_of_unit(float u) {
  const float s = u / (2.0f + u);
  const float z = s * s;
  float q = 2.14276582e-1f + 2.43009344e-1f * z;
  q = 2.86168844e-1f + q * z;
  q = 3.99988770e-1f + q * z;
  q = 6.66666746e-1f + q * z;
  return 2.0f * s + (s * z) * q;
}
MOE_INLINE double log1p_of_unit(double u) { return __builtin_log1p(u); }

// log(1 + e^x).
template <class A>
MOE_INLINE A softplus(A x) {
  const A u = log1p_of_unit(exp(x > 0 ? -x : x));
  return x > 0 ? x + u : u;
}

MOE_INLINE float tanh(float x) {
  const float a = float_of(bits_of(x) & 0x7fffffff);
  // Near 0 an odd polynomial; from 0.625 on 1 - 2 / (e^2a + 1) loses nothing.
  const float s = a * a;
  float q = -8.18267744e-3f + 2.14753975e-3f * s;
  q = 2.17029694e-2f + q * s;
  q = -5.39472029e-2f + q * s;
  q = 1.33332103e-1f + q * s;
  q = -3.33333313e-1f + q * s;
  const float small = a + (a * s) * q;
  const float large = 1.0f - 2.0f / (exp(2.0f * a) + 1.0f);
  const float magnitude = a < 0.625f ? small : large;
  return float_of(bits_of(magnitude) | (bits_of(x) & INT32_MIN));
}
MOE_INLINE double tanh(double x) { return __builtin_tanh(x); }

// 2/sqrt(pi) times the integral of e^(-t^2) from 0 to x.
MOE_INLINE float erf(float x) {
  const float a = float_of(bits_of(x) & 0x7fffffff);
  const float s = a * a;
  float q = -8.02084222e-4f + 7.88912294e-5f * s;
  q = 5.18953567e-3f + q * s;
  q = -2.68544443e-2f + q * s;
  q = 1.12836003e-1f + q * s;
  q = -3.76126260e-1f + q * s;
  const float small = a + a * (0.128379164f + s * q);
  // From 1 on 1 - e^-f(a), f a fit of -log(erfc) on [0.98, 4]; at 4 the result has rounded to 1.
  const float t = at_most(a, 4.0f);
  float f = -4.41472832e-4f + 2.16976296e-5f * t;
  f = 4.20528557e-3f + f * t;
  f = -2.52103433e-2f + f * t;
  f = 1.08422108e-1f + f * t;
  f = 6.33216381e-1f + f * t;
  f = 1.12958026f + f * t;
  f = -1.88468606e-4f + f * t;
  const float large = 1.0f - exp(-f);
  const float magnitude = a < 1.0f ? small : large;
  return float_of(bits_of(magnitude) | (bits_of(x) & INT32_MIN));
}
MOE_INLINE double erf(double x) { return __builtin_erf(x); }

}  // namespace moe::cpu::MOE_ISA
