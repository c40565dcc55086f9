// A run of pre-activations as MXFP8, format: moe/fused_experts.h. Integer arithmetic without branches, like numeric.h.
#pragma once

#include "cpu/vectorized/numeric.h"
#include "moe/fused_experts.h"

namespace moe::cpu::MOE_ISA {

// The largest value of a block becomes less than 512.
static constexpr int32_t kMxfp8Headroom = 8;

// Nearest even, saturating at 448. Infinities become NaN, whose sign stays.
MOE_INLINE uint8_t float_to_e4m3(float x) {
  const int32_t bits = bits_of(x), magnitude = bits & 0x7fffffff;
  const int32_t normal = ((magnitude + 0x7ffff + (magnitude >> 20 & 1)) >> 20) - ((127 - 7) << 3);
  // Adding 2^14 puts the last bit of an e4m3 subnormal, 2^-9, at the last bit of the float: the addition rounds.
  const int32_t subnormal = bits_of(float_of(magnitude) + 16384.0f) - bits_of(16384.0f);
  int32_t code = magnitude < (121 << 23) ? subnormal : normal;
  code = code > 0x7e ? 0x7e : code;
  code = magnitude >= 0x7f800000 ? 0x7f : code;
  return static_cast<uint8_t>(code | (bits >> 24 & 0x80));
}

MOE_INLINE float e4m3_to_float(uint8_t code) {
  const int32_t magnitude = code & 0x7f;
  // As a float the exponent is 120 too small; the product also makes subnormals right.
  const float value = float_of(magnitude == 0x7f ? 0x7fc00000 : magnitude << 20) * 0x1p120f;
  return float_of(
      static_cast<int32_t>(static_cast<uint32_t>(bits_of(value)) | static_cast<uint32_t>(code & 0x80) << 24));
}

// The value of a scale's byte, and one over it.
MOE_INLINE float e8m0_to_float(int32_t scale) { return float_of(scale == 0 ? 1 << 22 : scale << 23); }
MOE_INLINE float inverse_of_e8m0(int32_t scale) { return float_of((254 - scale) << 23); }

// One block of up to kMxfp8Columns values; returns the scale. Codes are `step` bytes apart.
template <class A>
static inline uint8_t encode_mxfp8(const A* __restrict source, int64_t count, uint8_t* __restrict codes, int64_t step) {
  int32_t largest = 0;
  for (int64_t j = 0; j < count; ++j) {
    const int32_t magnitude = bits_of(static_cast<float>(source[j])) & 0x7fffffff;
    const int32_t finite = magnitude < 0x7f800000 ? magnitude : 0;
    largest = finite > largest ? finite : largest;
  }
  const int32_t exponent = (largest >> 23) - kMxfp8Headroom;
  const int32_t scale = largest == 0 ? 127 : exponent < 0 ? 0 : exponent;
  const float inverse = inverse_of_e8m0(scale);
  uint8_t block[kMxfp8Columns];
  for (int64_t j = 0; j < count; ++j) block[j] = float_to_e4m3(static_cast<float>(source[j]) * inverse);
  for (int64_t j = 0; j < count; ++j) codes[j * step] = block[j];
  return static_cast<uint8_t>(scale);
}

// Values `first` .. `first + count` of a part of a row: codes are those of value `first`, scales those of value 0.
template <class A>
static inline void decode_mxfp8(const uint8_t* __restrict codes, int64_t step, const uint8_t* __restrict scales,
                                int64_t first, int64_t count, A* __restrict target) {
  for (int64_t j = 0; j < count;) {
    const int64_t left = kMxfp8Columns - (first + j) % kMxfp8Columns, end = count - j < left ? count : j + left;
    const float scale = e8m0_to_float(scales[(first + j) / kMxfp8Columns]);
    for (; j < end; ++j) target[j] = e4m3_to_float(codes[j * step]) * scale;
  }
}

}  // namespace moe::cpu::MOE_ISA
