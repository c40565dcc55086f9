// Loops over the lanes of a warp, and how a value of each type lies in a register.
//
// A family of instructions is a struct with a static `apply` on values; the templates below turn it into execute
// functions. With all lanes active the loops vectorise; with some, cheap operations are done on all 32 and blended.
// What a loop calls is always inlined: what the compiler simplifies on its own first, it may not vectorise later.
#pragma once

#include <bit>
#include <cstdint>
#include <string>
#include <type_traits>

#include "core/decode.h"
#include "core/warp.h"
#include "exec/number_formats.h"

namespace vgpu {

// Formats that C++ has no type for.
struct F16 {};
struct Bf16 {};

// The type that an operation computes in, and its way from and to the bits in a register.
template <class T>
struct Stored {
  using Value = T;
  using Bits = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;
  [[gnu::always_inline]] static Value load(Bits bits) {
    if constexpr (std::is_floating_point_v<T>)
      return std::bit_cast<T>(bits);
    else
      return static_cast<T>(bits);
  }
  [[gnu::always_inline]] static Bits store(Value value) {
    if constexpr (std::is_floating_point_v<T>)
      return std::bit_cast<Bits>(value);
    else
      return static_cast<std::make_unsigned_t<T>>(value);
  }
};
template <>
struct Stored<F16> {
  using Value = float;
  using Bits = uint32_t;
  [[gnu::always_inline]] static Value load(Bits bits) { return half_to_float(static_cast<uint16_t>(bits)); }
  [[gnu::always_inline]] static Bits store(Value value) { return float_to_half(value); }
};
template <>
struct Stored<Bf16> {
  using Value = float;
  using Bits = uint32_t;
  [[gnu::always_inline]] static Value load(Bits bits) { return bfloat_to_float(static_cast<uint16_t>(bits)); }
  [[gnu::always_inline]] static Bits store(Value value) { return float_to_bfloat(value); }
};
template <class T>
using BitsOf = typename Stored<T>::Bits;

// to[lane] = value(lane) for the active lanes. `value` must be harmless for whatever an inactive lane holds.
template <class Bits, class F>
[[gnu::always_inline]] inline void write_lanes(LaneMask active, Bits* to, F&& value) {
  if (active == kAllLanes) {
#pragma GCC ivdep
    for (uint32_t lane = 0; lane < kLanes; ++lane) to[lane] = value(lane);
    return;
  }
  alignas(64) Bits all[kLanes];
  for (uint32_t lane = 0; lane < kLanes; ++lane) all[lane] = value(lane);
#pragma GCC ivdep
  for (uint32_t lane = 0; lane < kLanes; ++lane) to[lane] = active >> lane & 1 ? all[lane] : to[lane];
}

// The same for what costs more than a blend saves.
template <class Bits, class F>
inline void write_lanes_singly(LaneMask active, Bits* to, F&& value) {
  for_lanes(active, [&](uint32_t lane) { to[lane] = value(lane); });
}

// A bit for each of the 32 lanes.
template <class F>
inline LaneMask lane_mask(F&& test) {
  LaneMask mask = 0;
  for (uint32_t lane = 0; lane < kLanes; ++lane) mask |= test(lane) ? 1u << lane : 0u;
  return mask;
}

// slot[0] is the destination, the sources follow. All have type T.
template <class T, class Op>
void unary(Warp& warp, const Instruction& i) {
  using S = Stored<T>;
  const auto* a = warp.lanes<BitsOf<T>>(i.slot[1]);
  write_lanes(warp.active, warp.lanes<BitsOf<T>>(i.slot[0]),
              [=](uint32_t lane) { return S::store(Op::apply(S::load(a[lane]))); });
}

template <class T, class Op>
void binary(Warp& warp, const Instruction& i) {
  using S = Stored<T>;
  const auto* a = warp.lanes<BitsOf<T>>(i.slot[1]);
  const auto* b = warp.lanes<BitsOf<T>>(i.slot[2]);
  write_lanes(warp.active, warp.lanes<BitsOf<T>>(i.slot[0]),
              [=](uint32_t lane) { return S::store(Op::apply(S::load(a[lane]), S::load(b[lane]))); });
}

template <class T, class Op>
void ternary(Warp& warp, const Instruction& i) {
  using S = Stored<T>;
  const auto* a = warp.lanes<BitsOf<T>>(i.slot[1]);
  const auto* b = warp.lanes<BitsOf<T>>(i.slot[2]);
  const auto* c = warp.lanes<BitsOf<T>>(i.slot[3]);
  write_lanes(warp.active, warp.lanes<BitsOf<T>>(i.slot[0]),
              [=](uint32_t lane) { return S::store(Op::apply(S::load(a[lane]), S::load(b[lane]), S::load(c[lane]))); });
}

// Two 16-bit values in a 32-bit register: f16x2, bf16x2, u16x2, s16x2. T is the type of one.
template <class T, class Op, int kSources>
[[gnu::flatten]] void packed(Warp& warp, const Instruction& i) {
  using S = Stored<T>;
  const uint32_t* a = warp.u32(i.slot[1]);
  const uint32_t* b = kSources > 1 ? warp.u32(i.slot[2]) : nullptr;
  const uint32_t* c = kSources > 2 ? warp.u32(i.slot[3]) : nullptr;
  const auto half = [=](uint32_t lane, int shift) {
    const auto x = S::load(a[lane] >> shift & 0xffff);
    if constexpr (kSources == 1)
      return S::store(Op::apply(x));
    else if constexpr (kSources == 2)
      return S::store(Op::apply(x, S::load(b[lane] >> shift & 0xffff)));
    else
      return S::store(Op::apply(x, S::load(b[lane] >> shift & 0xffff), S::load(c[lane] >> shift & 0xffff)));
  };
  write_lanes(warp.active, warp.u32(i.slot[0]), [=](uint32_t lane) { return half(lane, 0) | half(lane, 16) << 16; });
}

// Decoding.

inline void expect_operands(const Decoder& decoder, size_t count) {
  if (decoder.operands() != count) decoder.unknown("it should have " + std::to_string(count) + " operands");
}

// A register operand must be as wide as the type, other than in cvt, loads and stores.
inline void expect_width(const Decoder& decoder, const ptx::Operand& operand, const TypeInfo& type) {
  const uint32_t bits = decoder.register_bits(operand);
  if (bits != 0 && bits != type.bits) {
    decoder.unknown("the register " + operand.name + " of " + std::to_string(bits) + " bits is not a ." + type.name);
  }
}
inline Slot exact_source(Decoder& decoder, size_t k, const TypeInfo& type) {
  expect_width(decoder, decoder.operand(k), type);
  return decoder.source(k, type);
}
inline Slot exact_destination(Decoder& decoder, size_t k, const TypeInfo& type) {
  expect_width(decoder, decoder.operand(k), type);
  return decoder.destination(k, type);
}

// A destination and `sources` sources, all of one type.
inline void decode_operands(Decoder& decoder, const TypeInfo& type, size_t sources, InstructionClass kind) {
  expect_operands(decoder, sources + 1);
  decoder.out.kind = kind;
  for (size_t k = 1; k <= sources; ++k) decoder.out.slot[k] = exact_source(decoder, k, type);
  decoder.out.slot[0] = exact_destination(decoder, 0, type);
}

// choose.template operator()<T>() for the C++ type of a PTX type.
template <class F>
Execute for_integer(const Decoder& decoder, const TypeInfo& type, F&& choose) {
  if (type.name == "u16") return choose.template operator()<uint16_t>();
  if (type.name == "s16") return choose.template operator()<int16_t>();
  if (type.name == "u32") return choose.template operator()<uint32_t>();
  if (type.name == "s32") return choose.template operator()<int32_t>();
  if (type.name == "u64") return choose.template operator()<uint64_t>();
  if (type.name == "s64") return choose.template operator()<int64_t>();
  decoder.unknown("it has no type ." + type.name);
}

// Types of which only the width matters.
template <class F>
Execute for_width(const Decoder& decoder, const TypeInfo& type, F&& choose) {
  if (type.bits == 16) return choose.template operator()<uint16_t>();
  if (type.bits == 32) return choose.template operator()<uint32_t>();
  if (type.bits == 64) return choose.template operator()<uint64_t>();
  decoder.unknown("it has no type ." + type.name);
}

// choose.template operator()<k…>() with each flag as a compile-time bool.
template <class F>
Execute for_flags(F&& choose, bool a) {
  return a ? choose.template operator()<true>() : choose.template operator()<false>();
}
template <class F>
Execute for_flags(F&& choose, bool a, bool b) {
  return a ? for_flags([&]<bool kB>() { return choose.template operator()<true, kB>(); }, b)
           : for_flags([&]<bool kB>() { return choose.template operator()<false, kB>(); }, b);
}
template <class F>
Execute for_flags(F&& choose, bool a, bool b, bool c) {
  return a ? for_flags([&]<bool kB, bool kC>() { return choose.template operator()<true, kB, kC>(); }, b, c)
           : for_flags([&]<bool kB, bool kC>() { return choose.template operator()<false, kB, kC>(); }, b, c);
}

}  // namespace vgpu
