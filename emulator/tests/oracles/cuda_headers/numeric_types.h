// Functions of the fp16, bf16 and fp8 headers, the same source for the device and for the host.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

constexpr int kHalfResults = 30;
constexpr int kPackedResults = 18;
constexpr int kConversionResults = 24;

#define BOTH __host__ __device__

#ifndef __CUDACC__
#include "numeric_types_fallback.h"
#endif

template <typename T>
struct Pair;
template <>
struct Pair<__half> {
  using Type = __half2;
  BOTH static __half2 make(__half a, __half b) { return __halves2half2(a, b); }
};
template <>
struct Pair<__nv_bfloat16> {
  using Type = __nv_bfloat162;
  BOTH static __nv_bfloat162 make(__nv_bfloat16 a, __nv_bfloat16 b) { return __halves2bfloat162(a, b); }
};

// Results of scalar functions of a and b; T is __half or __nv_bfloat16.
template <typename T>
BOTH void half_results(T a, T b, T c, T* out) {
  const T zero = T(0.0f), one = T(1.0f);
  const bool comparisons[] = {__heq(a, b),  __hne(a, b),  __hlt(a, b),  __hle(a, b),  __hgt(a, b), __hge(a, b),
                              __hequ(a, b), __hneu(a, b), __hltu(a, b), __hgeu(a, b), __hisnan(a)};
  int i = 0;
  for (bool result : comparisons) out[i++] = result ? one : zero;
  out[i++] = __hadd(a, b);
  out[i++] = __hsub(a, b);
  out[i++] = __hmul(a, b);
  out[i++] = __hfma(a, b, c);
  out[i++] = __hfma_relu(a, b, c);
  out[i++] = __hadd_sat(a, b);
  out[i++] = __hmul_sat(a, b);
  out[i++] = __hfma_sat(a, b, c);
  out[i++] = __hmax(a, b);
  out[i++] = __hmin(a, b);
  out[i++] = __hmax_nan(a, b);
  out[i++] = __hmin_nan(a, b);
  out[i++] = __hneg(a);
  out[i++] = __habs(a);
  out[i++] = a + b * c;
  out[i++] = hfloor(a);
  out[i++] = hceil(a);
  out[i++] = hrint(a);
  out[i++] = htrunc(a);
}

template <typename T>
BOTH void packed_results(T a, T b, T c, typename Pair<T>::Type* out) {
  using P = Pair<T>;
  const auto x = P::make(a, b), y = P::make(b, c), z = P::make(c, a);
  int i = 0;
  out[i++] = __hadd2(x, y);
  out[i++] = __hsub2(x, y);
  out[i++] = __hmul2(x, y);
  out[i++] = __hfma2(x, y, z);
  out[i++] = __hfma2_relu(x, y, z);
  out[i++] = __hfma2_sat(x, y, z);
  out[i++] = __hmax2(x, y);
  out[i++] = __hmin2(x, y);
  out[i++] = __hmax2_nan(x, y);
  out[i++] = __hneg2(x);
  out[i++] = __habs2(x);
  out[i++] = __hlt2(x, y);
  out[i++] = __hgeu2(x, y);
  out[i++] = __hne2(x, y);
  out[i++] = h2floor(x);
  out[i++] = h2rint(x);
  out[i++] = __hadd2_sat(x, y);
  out[i++] = __hbeq2(x, y) ? x : y;
}

// Conversions of one float, integer results widened to 64 bits.
BOTH inline void conversion_results(float x, long long n, unsigned long long* out) {
  int i = 0;
  const auto bits = [](auto value) {
    unsigned short raw;
    static_assert(sizeof raw == sizeof value);
    memcpy(&raw, &value, sizeof raw);
    return static_cast<unsigned long long>(raw);
  };
  out[i++] = bits(__float2half_rn(x));
  out[i++] = bits(__float2half_rz(x));
  out[i++] = bits(__float2half_ru(x));
  out[i++] = bits(__float2half_rd(x));
  out[i++] = bits(__float2bfloat16_rn(x));
  out[i++] = bits(__float2bfloat16_rz(x));
  out[i++] = bits(__float2bfloat16_ru(x));
  out[i++] = bits(__float2bfloat16_rd(x));
  out[i++] = bits(__double2half(x * 1.0000001));
  out[i++] = bits(__double2bfloat16(x * 1.0000001));
  out[i++] = bits(__int2half_rn(static_cast<int>(n)));
  out[i++] = bits(__ll2half_rn(n));
  out[i++] = bits(__int2bfloat16_rn(static_cast<int>(n)));
  out[i++] = bits(__ull2bfloat16_rn(static_cast<unsigned long long>(n)));
  const __half h = __float2half_rn(x);
  const __nv_bfloat16 b = __float2bfloat16_rn(x);
  out[i++] = static_cast<unsigned>(__half2int_rz(h));
  out[i++] = static_cast<unsigned short>(__half2short_rn(h));
  out[i++] = __half2ull_rd(h);
  out[i++] = static_cast<unsigned>(__bfloat162int_ru(b));
  out[i++] = __bfloat162ull_rn(b);
  out[i++] = __nv_cvt_float_to_fp8(x, __NV_SATFINITE, __NV_E4M3);
  out[i++] = __nv_cvt_float_to_fp8(x, __NV_SATFINITE, __NV_E5M2);
  out[i++] = __nv_cvt_halfraw_to_fp8(h, __NV_SATFINITE, __NV_E4M3);
  out[i++] = __nv_cvt_bfloat16raw_to_fp8(b, __NV_SATFINITE, __NV_E5M2);
  out[i++] = __nv_cvt_float2_to_fp8x2(make_float2(x, -x), __NV_SATFINITE, __NV_E4M3);
}
