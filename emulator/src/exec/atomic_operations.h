// What atom and red compute: (old value, operand, second operand) → new value, all as bit patterns.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "exec/memory_operand.h"
#include "exec/number_formats.h"

namespace vgpu::atomic_operations {

template <class T>
using Operation = T (*)(T old, T b, T c);

template <class T>
T add(T old, T b, T) {
  return static_cast<T>(old + b);
}
template <class T>
T bit_and(T old, T b, T) {
  return old & b;
}
template <class T>
T bit_or(T old, T b, T) {
  return old | b;
}
template <class T>
T bit_xor(T old, T b, T) {
  return old ^ b;
}
template <class T>
T exchange(T, T b, T) {
  return b;
}
template <class T>
T compare_and_swap(T old, T b, T c) {
  return old == b ? c : old;
}
// S: the type to compare as, of T's size.
template <class S, class T>
T smaller(T old, T b, T) {
  return static_cast<T>(std::min(static_cast<S>(old), static_cast<S>(b)));
}
template <class S, class T>
T larger(T old, T b, T) {
  return static_cast<T>(std::max(static_cast<S>(old), static_cast<S>(b)));
}
inline uint32_t increment(uint32_t old, uint32_t b, uint32_t) { return old >= b ? 0 : old + 1; }
inline uint32_t decrement(uint32_t old, uint32_t b, uint32_t) { return old == 0 || old > b ? b : old - 1; }

inline uint32_t add_float(uint32_t old, uint32_t b, uint32_t) {
  const float sum = float_of(old) + float_of(b);
  return std::isnan(sum) ? kFloatNan : bits_of(sum);
}
inline uint32_t flushed(uint32_t bits) { return bits & 0x7f800000 ? bits : bits & 0x80000000; }
// In global memory, subnormal inputs and results become zero.
inline uint32_t add_float_flushed(uint32_t old, uint32_t b, uint32_t c) {
  return flushed(add_float(flushed(old), flushed(b), c));
}
inline uint64_t add_double(uint64_t old, uint64_t b, uint64_t) { return bits_of(double_of(old) + double_of(b)); }

// 16-bit floats. A sum of two is exact enough in a float: rounding it again gives the sum rounded once.
struct HalfFormat {
  static float load(uint16_t bits) { return half_to_float(bits); }
  static uint16_t store(float x) { return float_to_half(x); }
};
struct BfloatFormat {
  static float load(uint16_t bits) { return bfloat_to_float(bits); }
  static uint16_t store(float x) { return float_to_bfloat(x); }
};

template <class Format>
uint16_t add_half(uint16_t old, uint16_t b, uint16_t) {
  return Format::store(Format::load(old) + Format::load(b));
}
// The number where one is a NaN; −0 is less than +0.
template <class Format, bool kLarger>
uint16_t choose_half(uint16_t old, uint16_t b, uint16_t) {
  const float x = Format::load(old), y = Format::load(b);
  if (std::isnan(x)) return std::isnan(y) ? kHalfNan : b;
  if (std::isnan(y)) return old;
  const bool less = x < y || (x == y && std::signbit(x) && !std::signbit(y));
  return less == kLarger ? b : old;
}

// Both halves of a register.
template <Operation<uint16_t> kOperation>
uint32_t packed(uint32_t old, uint32_t b, uint32_t) {
  const auto low = kOperation(static_cast<uint16_t>(old), static_cast<uint16_t>(b), 0);
  const auto high = kOperation(static_cast<uint16_t>(old >> 16), static_cast<uint16_t>(b >> 16), 0);
  return static_cast<uint32_t>(high) << 16 | low;
}

}  // namespace vgpu::atomic_operations
