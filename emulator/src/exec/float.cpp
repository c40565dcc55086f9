// f32 and f64 arithmetic: add sub mul mad fma div neg abs min max copysign.
#include "exec/arithmetic.h"
#include "exec/float_lanes.h"

namespace vgpu {
namespace {

struct Add {
  static constexpr int kSources = 2;
  template <class T>
  static T apply(T a, T b) {
    return a + b;
  }
};
struct Subtract {
  static constexpr int kSources = 2;
  template <class T>
  static T apply(T a, T b) {
    return a - b;
  }
};
struct Multiply {
  static constexpr int kSources = 2;
  template <class T>
  static T apply(T a, T b) {
    return a * b;
  }
};
struct FusedMultiplyAdd {
  static constexpr int kSources = 3;
  template <class T>
  static T apply(T a, T b, T c) {
    return std::fma(a, b, c);
  }
};
struct Divide {
  static constexpr int kSources = 2;
  template <class T>
  static T apply(T a, T b) {
    return a / b;
  }
};
// a · (1/b), whose second factor is flushed for the largest b.
struct DivideApproximately {
  static constexpr int kSources = 2;
  static float apply(float a, float b) {
    const float reciprocal =
        std::abs(b) > 0x1p126f && std::abs(b) <= 0x1.fffffep127f ? std::copysign(0.0f, b) : 1.0f / b;
    const float quotient = a / b;
    return reciprocal == 0.0f ? a * reciprocal : quotient;
  }
};

// Of the sign only: NaNs keep their payload.
template <class T, bool kFtz, bool kAbsolute>
void change_sign(Warp& warp, const Instruction& i) {
  using Bits = BitsOf<T>;
  constexpr Bits kSign = Bits{1} << (sizeof(T) * 8 - 1);
  const Bits* a = warp.lanes<Bits>(i.slot[1]);
  write_lanes(warp.active, warp.lanes<Bits>(i.slot[0]), [=](uint32_t lane) -> Bits {
    const Bits x = Stored<T>::store(flushed<T, kFtz>(Stored<T>::load(a[lane])));
    return kAbsolute ? x & ~kSign : x ^ kSign;
  });
}

template <bool kAbsolute>
void decode_sign(Decoder& decoder) {
  const bool ftz = decoder.take("ftz");
  const TypeInfo type = decoder.take_type();
  decode_operands(decoder, type, 1, InstructionClass::kFloat);
  if (type.name == "f64") {
    if (ftz) decoder.unknown(".ftz is for .f32");
    decoder.out.execute = &change_sign<double, false, kAbsolute>;
  } else {
    decoder.out.execute = ftz ? &change_sign<float, true, kAbsolute> : &change_sign<float, false, kAbsolute>;
  }
}

// Of magnitudes with .abs; .xorsign gives the result the product of the signs.
template <class T, bool kMaximum, bool kFtz, bool kNan, bool kAbsolute, bool kXorSign, int kSources>
void extreme_of_lanes(Warp& warp, const Instruction& i) {
  using S = Stored<T>;
  using Bits = BitsOf<T>;
  constexpr Bits kSign = Bits{1} << (sizeof(T) * 8 - 1);
  const Bits *a = warp.lanes<Bits>(i.slot[1]), *b = warp.lanes<Bits>(i.slot[2]);
  const Bits* c = warp.lanes<Bits>(i.slot[kSources == 3 ? 3 : 2]);
  const auto load = [](Bits bits) {
    const T x = flushed<T, kFtz>(S::load(bits));
    return kAbsolute ? std::abs(x) : x;
  };
  write_lanes(warp.active, warp.lanes<Bits>(i.slot[0]), [=](uint32_t lane) -> Bits {
    T result = extreme<T, kMaximum, kNan>(load(a[lane]), load(b[lane]));
    if constexpr (kSources == 3) result = extreme<T, kMaximum, kNan>(result, load(c[lane]));
    const Bits sign = kXorSign && result == result ? (a[lane] ^ b[lane]) & kSign : 0;
    return S::store(result) | sign;
  });
}

template <bool kMaximum>
void decode_extreme(Decoder& decoder) {
  const bool ftz = decoder.take("ftz");
  const bool nan = decoder.take("NaN");
  const bool xor_sign = decoder.take("xorsign");
  const bool absolute = decoder.take("abs");
  const TypeInfo type = decoder.take_type();
  const size_t sources = decoder.operands() - 1;
  if (xor_sign && !absolute) decoder.unknown(".xorsign needs .abs");
  if (type.name == "f64") {
    if (ftz || nan || absolute || sources != 2) decoder.unknown("it has no such form for .f64");
    decode_operands(decoder, type, 2, InstructionClass::kFloat);
    decoder.out.execute = &extreme_of_lanes<double, kMaximum, false, false, false, false, 2>;
    return;
  }
  if (type.name != "f32") decoder.unknown("it has no type ." + type.name);
  if (sources == 3) {
    if (xor_sign) decoder.unknown(".xorsign is for two sources");
    decode_operands(decoder, type, 3, InstructionClass::kFloat);
    decoder.out.execute = for_flags(
        []<bool kFtz, bool kNan, bool kAbsolute>() -> Execute {
          return &extreme_of_lanes<float, kMaximum, kFtz, kNan, kAbsolute, false, 3>;
        },
        ftz, nan, absolute);
    return;
  }
  if (absolute != xor_sign) decoder.unknown(".abs needs .xorsign, or three sources");
  decode_operands(decoder, type, 2, InstructionClass::kFloat);
  decoder.out.execute = for_flags(
      []<bool kFtz, bool kNan, bool kXorSign>() -> Execute {
        return &extreme_of_lanes<float, kMaximum, kFtz, kNan, kXorSign, kXorSign, 2>;
      },
      ftz, nan, xor_sign);
}

template <class T>
void copy_sign(Warp& warp, const Instruction& i) {
  using Bits = BitsOf<T>;
  constexpr Bits kSign = Bits{1} << (sizeof(T) * 8 - 1);
  const Bits *a = warp.lanes<Bits>(i.slot[1]), *b = warp.lanes<Bits>(i.slot[2]);
  write_lanes(warp.active, warp.lanes<Bits>(i.slot[0]),
              [=](uint32_t lane) -> Bits { return (b[lane] & ~kSign) | (a[lane] & kSign); });
}

void decode_copysign(Decoder& decoder) {
  const TypeInfo type = decoder.take_type();
  decode_operands(decoder, type, 2, InstructionClass::kFloat);
  if (type.name != "f32" && type.name != "f64") decoder.unknown("it has no type ." + type.name);
  decoder.out.execute = type.name == "f32" ? &copy_sign<float> : &copy_sign<double>;
}

const RegisterDecoders kRegistered({{"copysign", decode_copysign}});

}  // namespace

void decode_float_add(Decoder& decoder) { decode_float_operation<Add>(decoder, true); }
void decode_float_sub(Decoder& decoder) { decode_float_operation<Subtract>(decoder, true); }
void decode_float_mul(Decoder& decoder) { decode_float_operation<Multiply>(decoder, true); }
void decode_float_fma(Decoder& decoder) { decode_float_operation<FusedMultiplyAdd>(decoder, true); }
void decode_float_neg(Decoder& decoder) { decode_sign<false>(decoder); }
void decode_float_abs(Decoder& decoder) { decode_sign<true>(decoder); }
void decode_float_min(Decoder& decoder) { decode_extreme<false>(decoder); }
void decode_float_max(Decoder& decoder) { decode_extreme<true>(decoder); }

void decode_float_div(Decoder& decoder) {
  // Both allow an error of 2 ulp; the quotient is rounded correctly instead.
  const std::string quick = decoder.take_any({"approx", "full"});
  if (quick != "approx") return decode_float_operation<Divide>(decoder, false);
  const bool ftz = decoder.take("ftz");
  const TypeInfo type = decoder.take_type();
  if (type.name != "f32") decoder.unknown(".approx is for .f32");
  decode_operands(decoder, type, 2, InstructionClass::kFloat);
  decoder.out.execute = ftz ? &float_operation<float, DivideApproximately, true, false, false>
                            : &float_operation<float, DivideApproximately, false, false, false>;
}

}  // namespace vgpu
