// Number formats and their accumulators. 16-bit floats are kept as bits and converted with integer arithmetic without
// branches, so that loops over them vectorise on every instruction set and give the same bits on all of them.
//
// Rounding is to nearest even. A NaN stays a quiet NaN with its sign and the upper bits of its payload; subnormals
// are kept in both directions.
//
// Included by csrc/cpu/<isa>/kernels.cpp, which defines MOE_ISA first. Everything here lives in that ISA's namespace
// and nothing here may be a template or inline function of the standard library: the linker would merge it with the
// copy of code that runs on machines without this ISA.
#pragma once

#include <cstdint>

#include "moe/types.h"

#ifndef MOE_ISA
#error "define MOE_ISA before this header"
#endif

// For what is called once per element: a loop vectorises only if all that it calls is inlined, and left to itself the
// compiler stops doing so when a file has many callers.
#define MOE_INLINE __attribute__((always_inline)) static inline

namespace moe::cpu::MOE_ISA {

struct bf16 {
  uint16_t bits;
};
struct fp16 {
  uint16_t bits;
};

MOE_INLINE int32_t bits_of(float x) { return __builtin_bit_cast(int32_t, x); }
MOE_INLINE int64_t bits_of(double x) { return __builtin_bit_cast(int64_t, x); }
MOE_INLINE float float_of(int32_t bits) { return __builtin_bit_cast(float, bits); }
MOE_INLINE double double_of(int64_t bits) { return __builtin_bit_cast(double, bits); }

MOE_INLINE float bf16_to_float(bf16 x) { return float_of(static_cast<int32_t>(static_cast<uint32_t>(x.bits) << 16)); }

MOE_INLINE bf16 float_to_bf16(float x) {
  const uint32_t u = static_cast<uint32_t>(bits_of(x));
  const uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  const uint32_t quiet_nan = (u >> 16) | 0x40u;
  const bool is_nan = static_cast<int32_t>(u & 0x7fffffffu) > 0x7f800000;
  return {static_cast<uint16_t>(is_nan ? quiet_nan : rounded)};
}

MOE_INLINE float fp16_to_float(fp16 x) {
  const int32_t magnitude = (x.bits & 0x7fff) << 13;
  const int32_t normal = magnitude + ((127 - 15) << 23);
  const int32_t inf_or_nan = magnitude + ((255 - 31) << 23);
  // A subnormal is made a normal number by an implicit bit, which is then subtracted as a float.
  const int32_t subnormal = bits_of(float_of(magnitude + (113 << 23)) - float_of(113 << 23));
  int32_t bits = magnitude < (1 << 23) ? subnormal : normal;
  bits = magnitude >= (31 << 23) ? inf_or_nan : bits;
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000) << 16;
  return float_of(static_cast<int32_t>(static_cast<uint32_t>(bits) | sign));
}

MOE_INLINE fp16 float_to_fp16(float x) {
  const uint32_t u = static_cast<uint32_t>(bits_of(x));
  const int32_t magnitude = static_cast<int32_t>(u & 0x7fffffffu);
  const int32_t normal = (magnitude - ((127 - 15) << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  // Adding 0.5 puts the last bit of a half-precision subnormal at the last bit of the float: the addition rounds.
  const int32_t half = 126 << 23;
  const int32_t subnormal = bits_of(float_of(magnitude) + float_of(half)) - half;
  const int32_t quiet_nan = 0x7e00 | ((magnitude >> 13) & 0x3ff);
  int32_t bits = magnitude < (113 << 23) ? subnormal : normal;
  // From 65520 on, half a step past the largest value, everything rounds to infinity.
  bits = magnitude >= 0x477ff000 ? 0x7c00 : bits;
  bits = magnitude > 0x7f800000 ? quiet_nan : bits;
  return {static_cast<uint16_t>(static_cast<uint32_t>(bits) | ((u >> 16) & 0x8000u))};
}

// What sums of T are kept in.
template <class T>
struct Accumulator {
  using type = float;
};
template <>
struct Accumulator<double> {
  using type = double;
};
template <class T>
using acc_t = typename Accumulator<T>::type;

MOE_INLINE float to_acc(float x) { return x; }
MOE_INLINE double to_acc(double x) { return x; }
MOE_INLINE float to_acc(bf16 x) { return bf16_to_float(x); }
MOE_INLINE float to_acc(fp16 x) { return fp16_to_float(x); }

// The type to round to goes in as a pointer that is not read.
MOE_INLINE float rounded(float x, const float*) { return x; }
MOE_INLINE double rounded(double x, const double*) { return x; }
MOE_INLINE bf16 rounded(float x, const bf16*) { return float_to_bf16(x); }
MOE_INLINE fp16 rounded(float x, const fp16*) { return float_to_fp16(x); }

template <class T>
MOE_INLINE T from_acc(acc_t<T> x) {
  return rounded(x, static_cast<const T*>(nullptr));
}

}  // namespace moe::cpu::MOE_ISA
