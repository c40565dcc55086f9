// Arithmetic of f16, bf16, f16x2 and bf16x2: add sub mul fma neg abs min max.
#include "exec/half_lanes.h"

#include "exec/arithmetic.h"

namespace vgpu {
namespace {

// A float has more than twice the bits of a half and then two, so a sum rounded to it and again is rounded once.
struct Add {
  static constexpr int kSources = 2;
  [[gnu::always_inline]] static float apply(float a, float b) { return a + b; }
};
struct Subtract {
  static constexpr int kSources = 2;
  [[gnu::always_inline]] static float apply(float a, float b) { return a - b; }
};
// Products of bf16 may be subnormal floats, and then inexact.
struct Multiply {
  static constexpr int kSources = 2;
  [[gnu::always_inline]] static float apply(float a, float b) { return to_float_odd(static_cast<double>(a) * b); }
};
struct FusedMultiplyAdd {
  static constexpr int kSources = 3;
  [[gnu::always_inline]] static float apply(float a, float b, float c) {
    return to_float_odd(add_odd(static_cast<double>(a) * b, c));
  }
};

template <class Op>
void decode_operation(Decoder& decoder) {
  decoder.take("rn");
  const bool ftz = decoder.take("ftz"), sat = decoder.take("sat");
  const bool relu = Op::kSources == 3 && decoder.take("relu");
  if (Op::kSources == 3 && decoder.take("oob")) decoder.unsupported(".oob");
  const TypeInfo type = decoder.take_type();
  const HalfType half = half_type(decoder, type);
  if (half.is_bfloat && (ftz || sat)) decoder.unknown(".ftz and .sat are for .f16");
  if (sat && relu) decoder.unknown(".sat and .relu exclude each other");
  decode_operands(decoder, type, Op::kSources, InstructionClass::kFloat);
  decoder.out.execute = for_flags(
      [&]<bool kFtz, bool kSat, bool kRelu>() -> Execute {
        if constexpr (kSat && kRelu)
          return nullptr;
        else
          return half_execute<Op, kFtz, kSat ? Clamp::kSaturate : kRelu ? Clamp::kRelu : Clamp::kNone>(half);
      },
      ftz, sat, relu);
}

// Bits only: a NaN stays what it is.
template <bool kAbsolute, bool kFtz>
void change_sign(Warp& warp, const Instruction& i) {
  const auto signs = static_cast<uint32_t>(i.immediate);
  const uint32_t* a = warp.u32(i.slot[1]);
  write_lanes(warp.active, warp.u32(i.slot[0]), [=](uint32_t lane) {
    uint32_t x = a[lane];
    if (kFtz) {
      if ((x & 0x7c00) == 0) x &= 0xffff8000;
      if ((x & 0x7c000000) == 0) x &= 0x8000ffff;
    }
    return kAbsolute ? x & ~signs : x ^ signs;
  });
}

template <bool kAbsolute>
void decode_sign(Decoder& decoder) {
  const bool ftz = decoder.take("ftz");
  const TypeInfo type = decoder.take_type();
  const HalfType half = half_type(decoder, type);
  if (half.is_bfloat && ftz) decoder.unknown(".ftz is for .f16");
  decode_operands(decoder, type, 1, InstructionClass::kFloat);
  decoder.out.immediate = half.packed ? 0x80008000 : 0x8000;
  decoder.out.execute = ftz ? &change_sign<kAbsolute, true> : &change_sign<kAbsolute, false>;
}

// A NaN result needs no sign: it is the same whatever its bits.
template <bool kMaximum, bool kNan, bool kXorSign>
struct Extreme {
  static constexpr int kSources = 2;
  [[gnu::always_inline]] static float apply(float x, float y) {
    if constexpr (!kXorSign) return extreme<float, kMaximum, kNan>(x, y);
    const uint32_t sign = (bits_of(x) ^ bits_of(y)) & 0x80000000;
    return float_of(bits_of(extreme<float, kMaximum, kNan>(std::abs(x), std::abs(y))) | sign);
  }
};

template <bool kMaximum>
void decode_extreme(Decoder& decoder) {
  const bool ftz = decoder.take("ftz"), nan = decoder.take("NaN");
  const bool xor_sign = decoder.take("xorsign");
  if (xor_sign && !decoder.take("abs")) decoder.unknown(".xorsign needs .abs");
  const TypeInfo type = decoder.take_type();
  const HalfType half = half_type(decoder, type);
  if (half.is_bfloat && ftz) decoder.unknown(".ftz is for .f16");
  decode_operands(decoder, type, 2, InstructionClass::kFloat);
  decoder.out.execute = for_flags(
      [&]<bool kFtz, bool kNan, bool kXorSign>() -> Execute {
        return half_execute<Extreme<kMaximum, kNan, kXorSign>, kFtz, Clamp::kNone>(half);
      },
      ftz, nan, xor_sign);
}

}  // namespace

void decode_half_add(Decoder& decoder) { decode_operation<Add>(decoder); }
void decode_half_sub(Decoder& decoder) { decode_operation<Subtract>(decoder); }
void decode_half_mul(Decoder& decoder) { decode_operation<Multiply>(decoder); }
void decode_half_fma(Decoder& decoder) { decode_operation<FusedMultiplyAdd>(decoder); }
void decode_half_neg(Decoder& decoder) { decode_sign<false>(decoder); }
void decode_half_abs(Decoder& decoder) { decode_sign<true>(decoder); }
void decode_half_min(Decoder& decoder) { decode_extreme<false>(decoder); }
void decode_half_max(Decoder& decoder) { decode_extreme<true>(decoder); }

}  // namespace vgpu
