// cvt of e4m3x2 and e5m2x2: from two f32 or one f16x2, and to f16x2.
#include "exec/convert.h"

namespace vgpu {
namespace {

struct ToE4m3 {
  static uint32_t apply(float x) { return float_to_e4m3(x); }
};
struct ToE5m2 {
  static uint32_t apply(float x) { return float_to_e5m2(x); }
};

template <bool kClampNegative>
float clamped(float x) {
  return kClampNegative && x <= 0.0f ? 0.0f : x;
}

// slot[1] becomes the upper byte, slot[2] the lower one.
template <class To, bool kClampNegative>
[[gnu::flatten]] void from_floats(Warp& warp, const Instruction& i) {
  const float *a = warp.f32(i.slot[1]), *b = warp.f32(i.slot[2]);
  write_lanes(warp.active, warp.u32(i.slot[0]), [=](uint32_t lane) {
    return To::apply(clamped<kClampNegative>(a[lane])) << 8 | To::apply(clamped<kClampNegative>(b[lane]));
  });
}

template <class To, bool kClampNegative>
[[gnu::flatten]] void from_halves(Warp& warp, const Instruction& i) {
  const uint32_t* a = warp.u32(i.slot[1]);
  write_lanes(warp.active, warp.u32(i.slot[0]), [=](uint32_t lane) {
    const float low = half_to_float(static_cast<uint16_t>(a[lane]));
    const float high = half_to_float(static_cast<uint16_t>(a[lane] >> 16));
    return To::apply(clamped<kClampNegative>(high)) << 8 | To::apply(clamped<kClampNegative>(low));
  });
}

template <float (*kFrom)(uint8_t), bool kClampNegative>
[[gnu::flatten]] void to_halves(Warp& warp, const Instruction& i) {
  const uint32_t* a = warp.u32(i.slot[1]);
  const auto half = [](uint32_t byte) {
    return uint32_t{float_to_half(clamped<kClampNegative>(kFrom(static_cast<uint8_t>(byte))))};
  };
  write_lanes(warp.active, warp.u32(i.slot[0]),
              [=](uint32_t lane) { return half(a[lane]) | half(a[lane] >> 8) << 16; });
}

bool is_float8(const TypeInfo& type) { return type.name == "e4m3x2" || type.name == "e5m2x2"; }

template <class To>
Execute to_float8(bool halves, bool relu) {
  if (halves) return relu ? &from_halves<To, true> : &from_halves<To, false>;
  return relu ? &from_floats<To, true> : &from_floats<To, false>;
}

}  // namespace

bool decode_float8(Decoder& decoder, const Conversion& c) {
  const bool to = is_float8(c.to), from = is_float8(c.from);
  if (!to && !from) return false;
  if (c.rounding != "rn" || c.ftz || c.sat || c.satfinite != to) decoder.unknown("it has no such form");
  const bool halves = c.from.name == "f16x2";
  if (to ? !halves && c.from.name != "f32" : c.to.name != "f16x2") {
    decoder.unsupported("the conversion from ." + c.from.name + " to ." + c.to.name);
  }
  const size_t sources = to && !halves ? 2 : 1;
  expect_operands(decoder, sources + 1);
  for (size_t k = 1; k <= sources; ++k) decoder.out.slot[k] = exact_source(decoder, k, c.from);
  decoder.out.slot[0] = exact_destination(decoder, 0, c.to);
  if (to) {
    decoder.out.execute = c.to.name == "e4m3x2" ? to_float8<ToE4m3>(halves, c.relu) : to_float8<ToE5m2>(halves, c.relu);
  } else if (c.from.name == "e4m3x2") {
    decoder.out.execute = c.relu ? &to_halves<e4m3_to_float, true> : &to_halves<e4m3_to_float, false>;
  } else {
    decoder.out.execute = c.relu ? &to_halves<e5m2_to_float, true> : &to_halves<e5m2_to_float, false>;
  }
  return true;
}

}  // namespace vgpu
