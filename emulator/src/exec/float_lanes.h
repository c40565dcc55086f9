// What the f32 and f64 instructions share: flushing, saturation, the NaN that results, rounding modes.
#pragma once

#include <cmath>
#include <type_traits>

#include "exec/lanes.h"
#include "exec/rounding.h"

namespace vgpu {

// .ftz: a subnormal becomes a zero of its sign.
[[gnu::always_inline]] inline float flush(float x) {
  const uint32_t u = bits_of(x);
  return float_of(u & 0x7f800000 ? u : u & 0x80000000);
}

// The same for a value of type f16.
[[gnu::always_inline]] inline float flush_half(float x) {
  return std::abs(x) < 0x1p-14f ? float_of(bits_of(x) & 0x80000000) : x;
}

// .sat: to [0, 1]; NaN becomes +0.
[[gnu::always_inline]] inline float saturate(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }

// An operation that gives a NaN gives the same one, whatever its operands. For f64 PTX leaves it open.
[[gnu::always_inline]] inline float canonical(float x) { return x != x ? float_of(kFloatNan) : x; }
inline double canonical(double x) { return x != x ? double_of(Double::kNan) : x; }

// A NaN loses against a number, or wins with .NaN. −0 is less than +0.
template <class T, bool kMaximum, bool kNan>
[[gnu::always_inline]] inline T extreme(T a, T b) {
  const bool a_is_nan = a != a, b_is_nan = b != b;
  const bool a_less = a < b || (a == b && std::signbit(a));
  const T better = a_less != kMaximum ? a : b;
  const T nan = sizeof(T) == 4 ? T(float_of(kFloatNan)) : T(double_of(Double::kNan));
  if (kNan) return a_is_nan || b_is_nan ? nan : better;
  const T number = b_is_nan ? a : a_is_nan ? b : better;
  return a_is_nan && b_is_nan ? nan : number;
}

template <class T, bool kFtz>
[[gnu::always_inline]] inline T flushed(T x) {
  if constexpr (kFtz)
    return flush(x);
  else
    return x;
}

template <class T, bool kFtz, bool kSat>
[[gnu::always_inline]] inline T finished(T x) {
  if constexpr (kSat)
    return saturate(flushed<T, kFtz>(x));
  else
    return flushed<T, kFtz>(canonical(x));
}

// slot[0] = Op(slot[1], …), extra[0] the rounding where kDirected. kVector: the operation is worth vectorising.
template <class T, class Op, bool kFtz, bool kSat, bool kDirected, bool kVector = true>
void float_operation(Warp& warp, const Instruction& i) {
  using S = Stored<T>;
  const auto* a = warp.lanes<BitsOf<T>>(i.slot[1]);
  const auto* b = warp.lanes<BitsOf<T>>(i.slot[Op::kSources > 1 ? 2 : 1]);
  const auto* c = warp.lanes<BitsOf<T>>(i.slot[Op::kSources > 2 ? 3 : 1]);
  const auto load = [](BitsOf<T> bits) { return flushed<T, kFtz>(S::load(bits)); };
  const auto value = [=](uint32_t lane) {
    const T x = load(a[lane]);
    T result;
    if constexpr (Op::kSources == 1)
      result = Op::apply(x);
    else if constexpr (Op::kSources == 2)
      result = Op::apply(x, load(b[lane]));
    else
      result = Op::apply(x, load(b[lane]), load(c[lane]));
    return S::store(finished<T, kFtz, kSat>(result));
  };
  auto* to = warp.lanes<BitsOf<T>>(i.slot[0]);
  if constexpr (kDirected) {
    const HostRounding scope(static_cast<Rounding>(i.extra[0]));
    write_lanes(warp.active, to, value);
  } else if constexpr (kVector) {
    write_lanes(warp.active, to, value);
  } else {
    write_lanes_singly(warp.active, to, value);
  }
}

// The rounding mode of an arithmetic instruction; nearest even when it has none.
inline Rounding take_rounding(Decoder& decoder) {
  const std::string mode = decoder.take_any({"rn", "rz", "rm", "rp"});
  return mode == "rz"   ? Rounding::kZero
         : mode == "rm" ? Rounding::kDown
         : mode == "rp" ? Rounding::kUp
                        : Rounding::kNearestEven;
}

// What is left of an instruction once its own modifiers are taken: rounding, .ftz, .sat, the type, the operands.
template <class Op>
void decode_float_operation(Decoder& decoder, bool may_saturate) {
  const Rounding rounding = take_rounding(decoder);
  const bool ftz = decoder.take("ftz");
  const bool sat = may_saturate && decoder.take("sat");
  const TypeInfo type = decoder.take_type();
  const bool directed = rounding != Rounding::kNearestEven;
  decode_operands(decoder, type, Op::kSources, InstructionClass::kFloat);
  decoder.out.extra[0] = static_cast<uint32_t>(rounding);
  if (type.name == "f64") {
    if (ftz || sat) decoder.unknown(".ftz and .sat are for .f32");
    decoder.out.execute =
        directed ? &float_operation<double, Op, false, false, true> : &float_operation<double, Op, false, false, false>;
  } else if (type.name == "f32") {
    decoder.out.execute = for_flags(
        []<bool kFtz, bool kSat, bool kDirected>() -> Execute {
          return &float_operation<float, Op, kFtz, kSat, kDirected>;
        },
        ftz, sat, directed);
  } else {
    decoder.unknown("it has no type ." + type.name);
  }
}

}  // namespace vgpu
