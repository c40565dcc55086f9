// cvt to floats: from each other, from integers, and two at a time.
#include "exec/convert.h"

namespace vgpu {
namespace {

// The format that a PTX type is encoded in, and where its bits lie in a register.
template <class D>
struct Encoded;
template <>
struct Encoded<F16> : Half {};
template <>
struct Encoded<Bf16> : Bfloat {};
template <>
struct Encoded<float> : Single {};
template <>
struct Encoded<double> : Double {};
struct Tf32Register {};
template <>
struct Encoded<Tf32Register> : Tf32 {};

template <class D>
using RegisterBits = std::conditional_t<std::is_same_v<D, double>, uint64_t, uint32_t>;

// Any modifiers: one lane at a time, exactly, through a double, which holds every source.
template <class D>
RegisterBits<D> encode_flagged(double x, uint32_t flags) {
  using Format = Encoded<D>;
  if (flags & kSat) x = x > 0 ? std::min(x, 1.0) : 0.0;
  if (flags & kRelu) x = x <= 0 ? 0.0 : x;
  uint64_t bits =
      encode<Format>(x, flags & kIntegral ? Rounding::kNearestEven : rounding_of(flags), flags & kSatfinite);
  if constexpr (std::is_same_v<D, Tf32Register>) bits = bits == Format::kNan ? kFloatNan : bits << 13;
  if constexpr (std::is_same_v<D, float>) {
    if (flags & kFtz && (bits & Format::kInfinity) == 0) bits &= Format::kSign;
  }
  return static_cast<RegisterBits<D>>(bits);
}

template <class D, class S>
void float_to_float(Warp& warp, const Instruction& i) {
  const auto* a = warp.lanes<BitsOf<S>>(i.slot[1]);
  const uint32_t flags = i.extra[0];
  write_lanes_singly(warp.active, warp.lanes<RegisterBits<D>>(i.slot[0]), [=](uint32_t lane) {
    auto x = Stored<S>::load(a[lane]);
    if constexpr (std::is_same_v<S, float>) x = flags & kFtz ? flush(x) : x;
    if (flags & kIntegral) x = round_to_integral(x, rounding_of(flags));
    return encode_flagged<D>(x, flags);
  });
}

template <class D, class S>
void integer_to_float(Warp& warp, const Instruction& i) {
  const auto* a = warp.lanes<BitsOf<S>>(i.slot[1]);
  const uint32_t flags = i.extra[0];
  write_lanes_singly(warp.active, warp.lanes<RegisterBits<D>>(i.slot[0]), [=](uint32_t lane) {
    const S x = Stored<S>::load(a[lane]);
    const bool negative = x < 0;
    const uint64_t magnitude = negative ? 0 - static_cast<uint64_t>(x) : static_cast<uint64_t>(x);
    if (flags & kSat) return encode_flagged<D>(negative || magnitude == 0 ? 0.0 : 1.0, flags);
    return static_cast<RegisterBits<D>>(encode<Encoded<D>>(negative, magnitude, 0, rounding_of(flags)));
  });
}

// To nearest even and nothing else: what C++ does.
template <class D, class S>
[[gnu::flatten]] void plain(Warp& warp, const Instruction& i) {
  const auto* a = warp.lanes<BitsOf<S>>(i.slot[1]);
  write_lanes(warp.active, warp.lanes<BitsOf<D>>(i.slot[0]), [=](uint32_t lane) {
    using Value = typename Stored<D>::Value;
    return Stored<D>::store(canonical(static_cast<Value>(Stored<S>::load(a[lane]))));
  });
}

// f32 → f32, of which there are many.
template <bool kFlush, bool kSaturate>
void same(Warp& warp, const Instruction& i) {
  const float* a = warp.f32(i.slot[1]);
  write_lanes(warp.active, warp.f32(i.slot[0]),
              [=](uint32_t lane) { return finished<float, kFlush, kSaturate>(flushed<float, kFlush>(a[lane])); });
}
template <bool kFlush, Rounding kRounding>
void same_integral(Warp& warp, const Instruction& i) {
  const float* a = warp.f32(i.slot[1]);
  write_lanes(warp.active, warp.f32(i.slot[0]),
              [=](uint32_t lane) { return canonical(round_to_integral(flushed<float, kFlush>(a[lane]), kRounding)); });
}
template <bool kFlush>
Execute same_of(const Conversion& c) {
  if (c.rounding == "rni" && !c.sat) return &same_integral<kFlush, Rounding::kNearestEven>;
  if (c.rounding == "rzi" && !c.sat) return &same_integral<kFlush, Rounding::kZero>;
  if (c.rounding == "rmi" && !c.sat) return &same_integral<kFlush, Rounding::kDown>;
  if (c.rounding == "rpi" && !c.sat) return &same_integral<kFlush, Rounding::kUp>;
  if (c.to_integral()) return nullptr;
  return c.sat ? &same<kFlush, true> : &same<kFlush, false>;
}

// To nearest, ties away from zero, as tf32 is nearly always made.
void to_tf32(Warp& warp, const Instruction& i) {
  const uint32_t* a = warp.u32(i.slot[1]);
  write_lanes(warp.active, warp.u32(i.slot[0]), [=](uint32_t lane) {
    const uint32_t u = a[lane];
    return (u & 0x7fffffff) > 0x7f800000 ? kFloatNan : (u + 0x1000) & ~0x1fffu;
  });
}

template <class F>
Execute for_float(const TypeInfo& type, F&& choose) {
  if (type.name == "f16") return choose.template operator()<F16>();
  if (type.name == "bf16") return choose.template operator()<Bf16>();
  if (type.name == "f32") return choose.template operator()<float>();
  if (type.name == "f64") return choose.template operator()<double>();
  return nullptr;
}

}  // namespace

Execute convert_to_float(const Conversion& c, bool is_plain) {
  if (c.from.kind != TypeInfo::kFloat) {
    if (c.relu || c.satfinite || c.to_integral()) return nullptr;
    return for_float(c.to, [&]<class D>() -> Execute {
      return for_any_integer(c.from, [&]<class S>() -> Execute {
        if constexpr (std::is_floating_point_v<D>) {
          if (is_plain) return &plain<D, S>;
        }
        return &integer_to_float<D, S>;
      });
    });
  }
  if (c.to.name == "tf32") {
    if (c.from.name != "f32" || c.ftz || c.sat) return nullptr;
    return c.rounding == "rna" && !c.relu && !c.satfinite ? &to_tf32 : &float_to_float<Tf32Register, float>;
  }
  if (c.to.name == "f32" && c.from.name == "f32" && !c.relu && !c.satfinite) {
    if (const Execute execute = c.ftz ? same_of<true>(c) : same_of<false>(c)) return execute;
  }
  // Subnormal floats become zeros in f16 anyway, and no f16 becomes one.
  const bool between_f16_and_f32 =
      (c.to.name == "f16" && c.from.name == "f32") || (c.to.name == "f32" && c.from.name == "f16");
  if (between_f16_and_f32 && c.ftz && !c.sat && !c.relu && !c.satfinite && c.rounding.size() != 3) {
    is_plain = c.rounding.empty() || c.rounding == "rn";
  }
  return for_float(c.to, [&]<class D>() -> Execute {
    return for_float(c.from, [&]<class S>() -> Execute {
      // From f64 to 16 bits by way of f32 would round twice.
      constexpr bool kOnce = !(std::is_same_v<S, double> && sizeof(BitsOf<D>) == 4 && !std::is_same_v<D, float>);
      if constexpr (kOnce) {
        if (is_plain) return &plain<D, S>;
      }
      return &float_to_float<D, S>;
    });
  });
}

// slot[1] becomes the upper half, slot[2] the lower one.
template <class D, bool kClampNegative>
[[gnu::flatten]] static void two_to_nearest(Warp& warp, const Instruction& i) {
  const float *a = warp.f32(i.slot[1]), *b = warp.f32(i.slot[2]);
  const auto half = [](float x) {
    if (kClampNegative) x = x <= 0.0f ? 0.0f : x;
    return Stored<D>::store(x);
  };
  write_lanes(warp.active, warp.u32(i.slot[0]), [=](uint32_t lane) { return half(a[lane]) << 16 | half(b[lane]); });
}

template <class D>
static void two_flagged(Warp& warp, const Instruction& i) {
  const float *a = warp.f32(i.slot[1]), *b = warp.f32(i.slot[2]);
  const uint32_t flags = i.extra[0];
  write_lanes_singly(warp.active, warp.u32(i.slot[0]), [=](uint32_t lane) {
    return encode_flagged<D>(a[lane], flags) << 16 | encode_flagged<D>(b[lane], flags);
  });
}

bool decode_packed_halves(Decoder& decoder, const Conversion& c) {
  if ((c.to.name != "f16x2" && c.to.name != "bf16x2") || c.from.name != "f32") return false;
  if (c.ftz || c.sat || c.to_integral() || c.rounding.empty()) decoder.unknown("it has no such form");
  expect_operands(decoder, 3);
  decoder.out.slot[1] = exact_source(decoder, 1, c.from);
  decoder.out.slot[2] = exact_source(decoder, 2, c.from);
  decoder.out.slot[0] = exact_destination(decoder, 0, c.to);
  const bool half = c.to.name == "f16x2";
  if (c.rounding != "rn" || c.satfinite) {
    decoder.out.execute = half ? &two_flagged<F16> : &two_flagged<Bf16>;
  } else if (c.relu) {
    decoder.out.execute = half ? &two_to_nearest<F16, true> : &two_to_nearest<Bf16, true>;
  } else {
    decoder.out.execute = half ? &two_to_nearest<F16, false> : &two_to_nearest<Bf16, false>;
  }
  return true;
}

}  // namespace vgpu
