// What the elements of matrix operands are, and how they become floats.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string_view>

#include "exec/number_formats.h"

#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace vgpu {

enum class Element : uint8_t { kF16, kBf16, kTf32, kE4m3, kE5m2, kS8, kU8 };

constexpr uint32_t bytes_of(Element e) {
  return e == Element::kTf32 ? 4 : e == Element::kF16 || e == Element::kBf16 ? 2 : 1;
}
constexpr bool is_integer(Element e) { return e == Element::kS8 || e == Element::kU8; }
constexpr bool is_float8(Element e) { return e == Element::kE4m3 || e == Element::kE5m2; }

inline std::optional<Element> element_named(std::string_view name) {
  if (name == "f16") return Element::kF16;
  if (name == "bf16") return Element::kBf16;
  if (name == "tf32") return Element::kTf32;
  if (name == "e4m3") return Element::kE4m3;
  if (name == "e5m2") return Element::kE5m2;
  if (name == "s8") return Element::kS8;
  if (name == "u8") return Element::kU8;
  return std::nullopt;
}

// Bits kept below the largest exponent when sums are cut off: what has been measured of H100.
constexpr int fraction_bits(Element e) { return is_float8(e) ? 13 : 25; }

// The 256 values of an 8-bit format.
template <float (*kConvert)(uint8_t)>
struct Float8Table {
  std::array<float, 256> values{};
  Float8Table() {
    for (int x = 0; x < 256; ++x) values[static_cast<size_t>(x)] = kConvert(static_cast<uint8_t>(x));
  }
};
inline const Float8Table<e4m3_to_float> kE4m3Values;
inline const Float8Table<e5m2_to_float> kE5m2Values;

// Element j of the 4 bytes of one register of one lane.
template <Element kElement>
inline float element_of(uint32_t word, int j) {
  if constexpr (kElement == Element::kTf32) return tf32_to_float(word);
  if constexpr (kElement == Element::kBf16) return float_of(j ? word & 0xffff0000u : word << 16);
  if constexpr (kElement == Element::kF16) return half_to_float(static_cast<uint16_t>(word >> (16 * j)));
  const uint8_t byte = static_cast<uint8_t>(word >> (8 * j));
  if constexpr (kElement == Element::kE4m3) return kE4m3Values.values[byte];
  if constexpr (kElement == Element::kE5m2) return kE5m2Values.values[byte];
  if constexpr (kElement == Element::kS8) return static_cast<float>(static_cast<int8_t>(byte));
  return static_cast<float>(byte);
}

// 16 bytes, in order.
template <Element kElement>
inline void widen_piece(const std::byte* from, float* to) {
  if constexpr (kElement == Element::kTf32) {
    uint32_t x[4];
    std::memcpy(x, from, 16);
    for (int i = 0; i < 4; ++i) to[i] = tf32_to_float(x[i]);
  } else if constexpr (kElement == Element::kBf16) {
    uint16_t x[8];
    std::memcpy(x, from, 16);
    for (int i = 0; i < 8; ++i) to[i] = bfloat_to_float(x[i]);
  } else if constexpr (kElement == Element::kF16) {
#if defined(__F16C__)
    _mm256_storeu_ps(to, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
#else
    uint16_t x[8];
    std::memcpy(x, from, 16);
    for (int i = 0; i < 8; ++i) to[i] = half_to_float(x[i]);
#endif
  } else {
    uint8_t x[16];
    std::memcpy(x, from, 16);
    for (int i = 0; i < 16; ++i) to[i] = element_of<kElement>(x[i], 0);
  }
}

// fn.template operator()<Element>() with the element's value as a constant.
template <class F>
inline void with_element(Element e, F&& fn) {
  switch (e) {
    case Element::kF16:
      fn.template operator()<Element::kF16>();
      break;
    case Element::kBf16:
      fn.template operator()<Element::kBf16>();
      break;
    case Element::kTf32:
      fn.template operator()<Element::kTf32>();
      break;
    case Element::kE4m3:
      fn.template operator()<Element::kE4m3>();
      break;
    case Element::kE5m2:
      fn.template operator()<Element::kE5m2>();
      break;
    case Element::kS8:
      fn.template operator()<Element::kS8>();
      break;
    case Element::kU8:
      fn.template operator()<Element::kU8>();
      break;
  }
}

}  // namespace vgpu
