// What the instructions on f16, bf16 and pairs of them share.
#pragma once

#include "exec/float_lanes.h"

namespace vgpu {

// Rounded to odd: exact, or the neighbour whose last bit is 1. A further rounding to a much narrower format is then as
// good as one from the exact value.
[[gnu::always_inline]] inline float to_float_odd(double x) {
  const auto nearest = static_cast<float>(x);
  const uint32_t u = bits_of(nearest);
  const double back = nearest;
  const bool inexact = back < x || back > x;
  const uint32_t towards = std::abs(back) < std::abs(x) ? u + 1 : u - 1;
  return float_of(inexact && (u & 1) == 0 ? towards : u);
}
[[gnu::always_inline]] inline double add_odd(double a, double b) {
  const double sum = a + b;
  const double b_part = sum - a;
  const double error = (a - (sum - b_part)) + (b - b_part);
  const uint64_t u = bits_of(sum);
  const bool inexact = error < 0 || error > 0;
  const uint64_t towards = (error > 0) == (sum > 0) ? u + 1 : u - 1;
  return double_of(inexact && (u & 1) == 0 ? towards : u);
}

enum class Clamp : uint8_t { kNone, kSaturate, kRelu };

// A result as a register holds it: rounded, then clamped and flushed.
template <class T, bool kFtz, Clamp kClamp>
[[gnu::always_inline]] inline uint32_t finished_half(float x) {
  if constexpr (kClamp == Clamp::kSaturate) x = saturate(x);
  if constexpr (kClamp == Clamp::kRelu) x = x < 0.0f || x == 0.0f ? 0.0f : x;
  const uint32_t bits = Stored<T>::store(x);
  constexpr uint32_t kExponent = std::is_same_v<T, F16> ? Half::kInfinity : Bfloat::kInfinity;
  return kFtz && (bits & kExponent) == 0 ? bits & 0x8000 : bits;
}

template <class T, bool kFtz>
[[gnu::always_inline]] inline float half_operand(uint32_t bits) {
  const float x = Stored<T>::load(bits);
  return !kFtz ? x : std::is_same_v<T, F16> ? flush_half(x) : flush(x);
}

// slot[0] = Op(slot[1], …). Op::apply is on floats and gives something that one more rounding makes right.
template <class T, class Op, bool kPacked, bool kFtz, Clamp kClamp>
[[gnu::flatten]] void half_operation(Warp& warp, const Instruction& i) {
  const uint32_t* a = warp.u32(i.slot[1]);
  const uint32_t* b = warp.u32(i.slot[Op::kSources > 1 ? 2 : 1]);
  const uint32_t* c = warp.u32(i.slot[Op::kSources > 2 ? 3 : 1]);
  const auto part = [=](uint32_t lane, int shift) __attribute__((always_inline)) {
    const float x = half_operand<T, kFtz>(a[lane] >> shift);
    float result;
    if constexpr (Op::kSources == 1)
      result = Op::apply(x);
    else if constexpr (Op::kSources == 2)
      result = Op::apply(x, half_operand<T, kFtz>(b[lane] >> shift));
    else
      result = Op::apply(x, half_operand<T, kFtz>(b[lane] >> shift), half_operand<T, kFtz>(c[lane] >> shift));
    return finished_half<T, kFtz, kClamp>(result);
  };
  const auto value = [=](uint32_t lane) { return kPacked ? part(lane, 0) | part(lane, 16) << 16 : part(lane, 0); };
  write_lanes(warp.active, warp.u32(i.slot[0]), value);
}

struct HalfType {
  bool is_bfloat = false, packed = false;
};
inline HalfType half_type(const Decoder& decoder, const TypeInfo& type) {
  if (type.name == "f16") return {false, false};
  if (type.name == "f16x2") return {false, true};
  if (type.name == "bf16") return {true, false};
  if (type.name == "bf16x2") return {true, true};
  decoder.unknown("it has no type ." + type.name);
}

template <class Op, bool kFtz, Clamp kClamp>
Execute half_execute(HalfType type) {
  if (type.is_bfloat) {
    return type.packed ? &half_operation<Bf16, Op, true, kFtz, kClamp> : &half_operation<Bf16, Op, false, kFtz, kClamp>;
  }
  return type.packed ? &half_operation<F16, Op, true, kFtz, kClamp> : &half_operation<F16, Op, false, kFtz, kClamp>;
}

}  // namespace vgpu
