// cvt, taken apart; its kinds are in convert.cpp, convert_float.cpp and float8.cpp.
#pragma once

#include <cmath>
#include <string>

#include "exec/float_lanes.h"

namespace vgpu {

struct Conversion {
  TypeInfo to, from;
  // How the instruction says to round: "rn", "rz", "rm", "rp", "rna" for floats, "rni", "rzi", "rmi", "rpi" to an
  // integer; empty when it does not.
  std::string rounding;
  bool ftz = false, sat = false, relu = false, satfinite = false;
  bool to_integral() const { return rounding.size() == 3 && rounding[2] == 'i'; }
};

// What the flags mean at execution, in Instruction::extra[0].
constexpr uint32_t kFtz = 1, kSat = 2, kRelu = 4, kSatfinite = 8, kIntegral = 16;
constexpr uint32_t kRoundingShift = 8;
uint32_t convert_flags(const Decoder& decoder, const Conversion& c);
inline Rounding rounding_of(uint32_t flags) { return static_cast<Rounding>(flags >> kRoundingShift); }

template <class T>
T round_to_integral(T x, Rounding rounding) {
  switch (rounding) {
    case Rounding::kZero:
      return std::trunc(x);
    case Rounding::kDown:
      return std::floor(x);
    case Rounding::kUp:
      return std::ceil(x);
    default:
      return std::nearbyint(x);
  }
}

// choose<T>() for the integer type of these bits; null when there is none.
template <class F>
Execute for_any_integer(const TypeInfo& type, F&& choose) {
  const bool is_signed = type.kind == TypeInfo::kSigned;
  switch (type.bits) {
    case 8:
      return is_signed ? choose.template operator()<int8_t>() : choose.template operator()<uint8_t>();
    case 16:
      return is_signed ? choose.template operator()<int16_t>() : choose.template operator()<uint16_t>();
    case 32:
      return is_signed ? choose.template operator()<int32_t>() : choose.template operator()<uint32_t>();
    case 64:
      return is_signed ? choose.template operator()<int64_t>() : choose.template operator()<uint64_t>();
    default:
      return nullptr;
  }
}

// Between f16, bf16, tf32, f32 and f64, or integers to them. Null when there is no such conversion.
Execute convert_to_float(const Conversion& c, bool plain);
// Two floats to f16x2 or bf16x2, and fp8 in pairs: decodes the operands too. False when it is neither.
bool decode_packed_halves(Decoder& decoder, const Conversion& c);
bool decode_float8(Decoder& decoder, const Conversion& c);

}  // namespace vgpu
