// Exact conversions between the number formats of PTX, independent of the host's rounding mode unless said otherwise.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>

namespace vgpu {

enum class Rounding : uint8_t { kNearestEven, kNearestAway, kZero, kDown, kUp };

// What PTX makes of a NaN result.
constexpr uint32_t kFloatNan = 0x7fffffff;
constexpr uint16_t kHalfNan = 0x7fff;  // f16 and bf16
constexpr uint8_t kFloat8Nan = 0x7f;   // e4m3 and e5m2

constexpr uint32_t bits_of(float x) { return std::bit_cast<uint32_t>(x); }
constexpr uint64_t bits_of(double x) { return std::bit_cast<uint64_t>(x); }
constexpr float float_of(uint32_t bits) { return std::bit_cast<float>(bits); }
constexpr double double_of(uint64_t bits) { return std::bit_cast<double>(bits); }

// 2^e as a float.
constexpr float float_power(int e) { return float_of(static_cast<uint32_t>(127 + e) << 23); }

// A format by the widths of its fields. kLargest and kInfinity have no sign; e4m3 has no infinity, so what would be one
// is its NaN.
template <int kExponentBits_, int kMantissaBits_>
struct IeeeFormat {
  static constexpr int kExponentBits = kExponentBits_;
  static constexpr int kMantissaBits = kMantissaBits_;
  static constexpr int kBias = (1 << (kExponentBits - 1)) - 1;
  static constexpr int kBits = 1 + kExponentBits + kMantissaBits;
  static constexpr uint64_t kSign = 1ull << (kBits - 1);
  static constexpr uint64_t kInfinity = ((1ull << kExponentBits) - 1) << kMantissaBits;
  static constexpr uint64_t kLargest = kInfinity - 1;
  static constexpr uint64_t kNan = kSign - 1;
};
using Half = IeeeFormat<5, 10>;
using Bfloat = IeeeFormat<8, 7>;
using Single = IeeeFormat<8, 23>;
using Tf32 = IeeeFormat<8, 10>;
using E5m2 = IeeeFormat<5, 2>;
struct Double : IeeeFormat<11, 52> {
  static constexpr uint64_t kNan = 0xfff8000000000000;
};
struct E4m3 : IeeeFormat<4, 3> {
  static constexpr uint64_t kInfinity = 0x7f;
  static constexpr uint64_t kLargest = 0x7e;
};

// (−1)^negative · significand · 2^exponent, rounded once. Too large: infinity or, where the rounding points away from
// it or `saturate` says so, the largest finite number.
template <class Format>
constexpr uint64_t encode(bool negative, uint64_t significand, int exponent, Rounding rounding, bool saturate = false) {
  const uint64_t sign = negative ? Format::kSign : 0;
  if (significand == 0) return sign;
  const int top = 63 - std::countl_zero(significand);  // of the value: top + exponent
  // The exponent of the last place of the result.
  const int last = std::max(top + exponent, 1 - Format::kBias) - Format::kMantissaBits;
  const int drop = last - exponent;
  uint64_t kept = 0;
  int rest = 0;  // what is dropped: 0 nothing, 1 less than half of the last place, 2 half, 3 more
  if (drop <= 0) {
    kept = significand << -drop;
  } else if (drop <= 64) {
    kept = drop == 64 ? 0 : significand >> drop;
    const uint64_t half = 1ull << (drop - 1);
    const uint64_t dropped = drop == 64 ? significand : significand & ((1ull << drop) - 1);
    rest = dropped == 0 ? 0 : dropped < half ? 1 : dropped == half ? 2 : 3;
  } else {
    rest = 1;
  }
  bool up = false;
  switch (rounding) {
    case Rounding::kNearestEven:
      up = rest == 3 || (rest == 2 && (kept & 1));
      break;
    case Rounding::kNearestAway:
      up = rest >= 2;
      break;
    case Rounding::kZero:
      break;
    case Rounding::kDown:
      up = rest != 0 && negative;
      break;
    case Rounding::kUp:
      up = rest != 0 && !negative;
      break;
  }
  kept += up;
  // Adding the exponent to the mantissa with its hidden bit carries into the exponent where rounding overflowed.
  const uint64_t biased = static_cast<uint64_t>(last + Format::kMantissaBits + Format::kBias - 1);
  const bool inwards = rounding == Rounding::kZero || (rounding == Rounding::kDown && !negative) ||
                       (rounding == Rounding::kUp && negative);
  const uint64_t too_large = saturate || inwards ? Format::kLargest : Format::kInfinity;
  if (biased > 2u * Format::kBias + 1) return sign | too_large;
  const uint64_t magnitude = (biased << Format::kMantissaBits) + kept;
  return sign | (magnitude > Format::kLargest ? too_large : magnitude);
}

template <class Format>
constexpr uint64_t encode(double x, Rounding rounding, bool saturate = false) {
  const uint64_t u = bits_of(x);
  const bool negative = u >> 63;
  const int exponent = static_cast<int>(u >> 52 & 0x7ff);
  const uint64_t mantissa = u & ((1ull << 52) - 1);
  if (exponent == 0x7ff) {
    if (mantissa) return Format::kNan;
    return (negative ? Format::kSign : 0) | (saturate ? Format::kLargest : Format::kInfinity);
  }
  return exponent == 0 ? encode<Format>(negative, mantissa, -1074, rounding, saturate)
                       : encode<Format>(negative, mantissa | 1ull << 52, exponent - 1075, rounding, saturate);
}

// The functions below have no branches, so that loops over lanes vectorise.

// The magnitude of a finite or infinite float, rounded to nearest even with the exponent unbounded above: a result
// beyond Format::kLargest is too large. Needs the host to round to nearest.
template <class Format>
inline uint32_t round_magnitude(uint32_t magnitude) {
  constexpr int kShift = 23 - Format::kMantissaBits;
  constexpr uint32_t kRebias = static_cast<uint32_t>(Format::kBias - 127) << 23;
  constexpr uint32_t kSmallestNormal = static_cast<uint32_t>(128 - Format::kBias) << 23;
  // Adding it leaves the subnormal's last place as that of the sum.
  constexpr float kAlign = float_power(1 - Format::kBias - Format::kMantissaBits + 23);
  const uint32_t subnormal = bits_of(float_of(magnitude) + kAlign) - bits_of(kAlign);
  const uint32_t normal = (magnitude + kRebias + (1u << (kShift - 1)) - 1 + (magnitude >> kShift & 1)) >> kShift;
  return magnitude < kSmallestNormal ? subnormal : normal;
}

// A NaN keeps its sign and payload, as it does in bfloat_to_float.
inline float half_to_float(uint16_t h) {
  const uint32_t magnitude = static_cast<uint32_t>(h & 0x7fff) << 13;
  const uint32_t exponent = h & 0x7c00;
  // A subnormal is read as 2^-14 and a bit, of which the bit is kept: no operand is a subnormal float, which is slow.
  const uint32_t subnormal = bits_of(float_of(magnitude + (113u << 23)) - float_power(-14));
  const uint32_t finite = exponent == 0 ? subnormal : magnitude + (112u << 23);
  const uint32_t value = exponent == 0x7c00 ? magnitude | 0x7f800000 : finite;
  return float_of(value | static_cast<uint32_t>(h & 0x8000) << 16);
}

inline float bfloat_to_float(uint16_t b) { return float_of(static_cast<uint32_t>(b) << 16); }

inline uint16_t float_to_half(float x) {
  const uint32_t u = bits_of(x), magnitude = u & 0x7fffffff;
  const uint32_t value = std::min(round_magnitude<Half>(magnitude), 0x7c00u) | (u >> 16 & 0x8000);
  return static_cast<uint16_t>(magnitude > 0x7f800000 ? kHalfNan : value);
}

inline uint16_t float_to_bfloat(float x) {
  const uint32_t u = bits_of(x);
  const uint32_t value = (u + 0x7fff + (u >> 16 & 1)) >> 16;
  return static_cast<uint16_t>((u & 0x7fffffff) > 0x7f800000 ? kHalfNan : value);
}

// What a matrix instruction reads of a tf32 register: the low 13 bits do not count.
inline float tf32_to_float(uint32_t t) { return float_of(t & ~0x1fffu); }

inline float e4m3_to_float(uint8_t e) {
  const uint32_t magnitude = static_cast<uint32_t>(e & 0x7f) << 20;
  const uint32_t subnormal = bits_of(float_of(magnitude + (121u << 23)) - float_power(-6));
  const uint32_t finite = (e & 0x78) == 0 ? subnormal : magnitude + (120u << 23);
  return float_of((e & 0x7f) == 0x7f ? kFloatNan : finite | static_cast<uint32_t>(e & 0x80) << 24);
}

inline float e5m2_to_float(uint8_t e) { return half_to_float(static_cast<uint16_t>(e << 8)); }

// To nearest even; too large becomes the largest finite number (.satfinite).
inline uint8_t float_to_e4m3(float x) {
  const uint32_t u = bits_of(x), magnitude = u & 0x7fffffff;
  const uint32_t value = std::min<uint32_t>(round_magnitude<E4m3>(magnitude), E4m3::kLargest) | (u >> 24 & 0x80);
  return static_cast<uint8_t>(magnitude > 0x7f800000 ? kFloat8Nan : value);
}

inline uint8_t float_to_e5m2(float x) {
  const uint32_t u = bits_of(x), magnitude = u & 0x7fffffff;
  const uint32_t value = std::min<uint32_t>(round_magnitude<E5m2>(magnitude), E5m2::kLargest) | (u >> 24 & 0x80);
  return static_cast<uint8_t>(magnitude > 0x7f800000 ? kFloat8Nan : value);
}

}  // namespace vgpu
