// What the headers leave out for a host compiler, computed exactly and rounded once.
#pragma once

#include <cmath>
#include <cstring>
#include <limits>

namespace fallback {

// The double next to `exact` whose rounding to a narrower type gives what rounding `exact` would: inexact results
// get an odd last bit.
inline double round_to_odd(__float128 exact) {
  double near = static_cast<double>(exact);
  if (static_cast<__float128>(near) == exact || std::isnan(near) || std::isinf(near)) return near;
  const bool below = static_cast<__float128>(std::fabs(near)) < (exact < 0 ? -exact : exact);
  const double far = std::nextafter(near, below ? (near < 0 ? -INFINITY : INFINITY) : 0.0);
  unsigned long long bits;
  std::memcpy(&bits, &near, sizeof bits);
  return bits & 1 ? near : far;
}

inline __half narrow(double x, __half) { return __double2half(x); }
inline __nv_bfloat16 narrow(double x, __nv_bfloat16) { return __double2bfloat16(x); }

template <typename T>
T fma(T a, T b, T c) {
  const double x = static_cast<float>(a), y = static_cast<float>(b), z = static_cast<float>(c);
  const double product = x * y;  // exact
  if (!std::isfinite(product) || !std::isfinite(z)) return narrow(product + z, T());
  const __float128 exact = static_cast<__float128>(product) + z;
  return narrow(exact == 0 ? product + z : round_to_odd(exact), T());
}

template <typename T>
T clamp(T x, float low, float high) {
  const float value = static_cast<float>(x);
  if (std::isnan(value)) return high == 1.0f ? T(0.0f) : x;  // saturation turns NaN into 0, relu keeps it
  return value > low ? (value < high ? x : T(high)) : T(low);
}

}  // namespace fallback

#define SCALAR_AND_PACKED(T, T2, JOIN)                                                                              \
  inline T __hfma(T a, T b, T c) { return fallback::fma(a, b, c); }                                                 \
  inline T __hfma_relu(T a, T b, T c) { return fallback::clamp(__hfma(a, b, c), 0.0f, INFINITY); }                  \
  inline T __hfma_sat(T a, T b, T c) { return fallback::clamp(__hfma(a, b, c), 0.0f, 1.0f); }                       \
  inline T hfloor(T a) { return T(std::floor(static_cast<float>(a))); }                                             \
  inline T hceil(T a) { return T(std::ceil(static_cast<float>(a))); }                                               \
  inline T hrint(T a) { return T(std::nearbyint(static_cast<float>(a))); }                                          \
  inline T htrunc(T a) { return T(std::trunc(static_cast<float>(a))); }                                             \
  inline T2 __hfma2(T2 a, T2 b, T2 c) { return JOIN(__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)); }                \
  inline T2 __hfma2_relu(T2 a, T2 b, T2 c) { return JOIN(__hfma_relu(a.x, b.x, c.x), __hfma_relu(a.y, b.y, c.y)); } \
  inline T2 __hfma2_sat(T2 a, T2 b, T2 c) { return JOIN(__hfma_sat(a.x, b.x, c.x), __hfma_sat(a.y, b.y, c.y)); }    \
  inline T2 h2floor(T2 a) { return JOIN(hfloor(a.x), hfloor(a.y)); }                                                \
  inline T2 h2rint(T2 a) { return JOIN(hrint(a.x), hrint(a.y)); }

SCALAR_AND_PACKED(__half, __half2, __halves2half2)
SCALAR_AND_PACKED(__nv_bfloat16, __nv_bfloat162, __halves2bfloat162)
#undef SCALAR_AND_PACKED

namespace fallback {

// Saturating conversion of a whole number.
template <typename Integer>
Integer whole(double x) {
  if (std::isnan(x)) return sizeof(Integer) == 8 ? Integer(1) << 63 : 0;
  constexpr double kBound = sizeof(Integer) == 8   ? 18446744073709551616.0
                            : sizeof(Integer) == 4 ? 2147483648.0
                                                   : 32768.0;
  constexpr bool kSigned = std::numeric_limits<Integer>::is_signed;
  if (x >= kBound) return std::numeric_limits<Integer>::max();
  if (x < (kSigned ? -kBound : 0.0)) return std::numeric_limits<Integer>::min();
  return static_cast<Integer>(x);
}

}  // namespace fallback

inline short __half2short_rn(__half x) { return fallback::whole<short>(std::nearbyint(__half2float(x))); }
inline unsigned long long __half2ull_rd(__half x) {
  return fallback::whole<unsigned long long>(std::floor(__half2float(x)));
}
inline int __bfloat162int_ru(__nv_bfloat16 x) { return fallback::whole<int>(std::ceil(__bfloat162float(x))); }
inline unsigned long long __bfloat162ull_rn(__nv_bfloat16 x) {
  return fallback::whole<unsigned long long>(std::nearbyint(__bfloat162float(x)));
}
