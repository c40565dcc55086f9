// cvt: the decoder, conversions to integers, and cvt.pack.
#include "exec/convert.h"

#include <algorithm>
#include <limits>
#include <memory>

#include "core/program_builder.h"

namespace vgpu {
namespace {

template <class D, class S>
void truncate_or_extend(Warp& warp, const Instruction& i) {
  const auto* a = warp.lanes<BitsOf<S>>(i.slot[1]);
  write_lanes(warp.active, warp.lanes<BitsOf<D>>(i.slot[0]),
              [=](uint32_t lane) { return Stored<D>::store(static_cast<D>(Stored<S>::load(a[lane]))); });
}

template <class D, class S>
D clamp_integer(S x) {
  using Limits = std::numeric_limits<D>;
  if (std::cmp_less(x, Limits::min())) return Limits::min();
  return std::cmp_greater(x, Limits::max()) ? Limits::max() : static_cast<D>(x);
}
template <class D, class S>
void clamp_integers(Warp& warp, const Instruction& i) {
  const auto* a = warp.lanes<BitsOf<S>>(i.slot[1]);
  write_lanes(warp.active, warp.lanes<BitsOf<D>>(i.slot[0]),
              [=](uint32_t lane) { return Stored<D>::store(clamp_integer<D>(Stored<S>::load(a[lane]))); });
}

// Too large and too small become the nearest integer that there is. A NaN becomes 0 or, from f64 or to 64 bits, the
// pattern with the highest bit alone.
template <class D, bool kHighNan, class V>
D from_integral(V x) {
  constexpr int kBits = 8 * sizeof(D);
  constexpr V kUpper = static_cast<V>(uint64_t{1} << (kBits - 1)) * (std::is_signed_v<D> ? 1 : 2);
  constexpr V kLower = std::is_signed_v<D> ? -kUpper : V{0};
  constexpr D kNan = kHighNan ? static_cast<D>(uint64_t{1} << (kBits - 1)) : D{0};
  const bool fits = x >= kLower && x < kUpper;
  const D value = static_cast<D>(fits ? x : V{0});
  const D limit = x < kLower ? std::numeric_limits<D>::min() : std::numeric_limits<D>::max();
  const D outside = x != x ? kNan : limit;
  return fits ? value : outside;
}
template <class D, class S>
constexpr bool kHighNan = sizeof(D) == 8 || std::is_same_v<S, double>;

template <class D, class S, Rounding kRounding, bool kFlush>
void to_integer(Warp& warp, const Instruction& i) {
  const auto* a = warp.lanes<BitsOf<S>>(i.slot[1]);
  write_lanes(warp.active, warp.lanes<BitsOf<D>>(i.slot[0]), [=](uint32_t lane) {
    const auto x = round_to_integral(flushed<S, kFlush>(Stored<S>::load(a[lane])), kRounding);
    return Stored<D>::store(from_integral<D, kHighNan<D, S>>(x));
  });
}

// The rarer types.
template <class D, class S>
void to_any_integer(Warp& warp, const Instruction& i) {
  const auto* a = warp.lanes<BitsOf<S>>(i.slot[1]);
  const uint32_t flags = i.extra[0];
  write_lanes(warp.active, warp.lanes<BitsOf<D>>(i.slot[0]), [=](uint32_t lane) {
    auto x = Stored<S>::load(a[lane]);
    if constexpr (std::is_same_v<S, float>) x = flags & kFtz ? flush(x) : x;
    return Stored<D>::store(from_integral<D, kHighNan<D, S>>(round_to_integral(x, rounding_of(flags))));
  });
}

template <class D, class S, bool kFlush>
Execute to_integer_rounded(Rounding rounding) {
  switch (rounding) {
    case Rounding::kZero:
      return &to_integer<D, S, Rounding::kZero, kFlush>;
    case Rounding::kDown:
      return &to_integer<D, S, Rounding::kDown, kFlush>;
    case Rounding::kUp:
      return &to_integer<D, S, Rounding::kUp, kFlush>;
    default:
      return &to_integer<D, S, Rounding::kNearestEven, kFlush>;
  }
}

Execute float_to_integer(const Conversion& c, uint32_t flags) {
  const Rounding rounding = rounding_of(flags);
  return for_any_integer(c.to, [&]<class D>() -> Execute {
    if constexpr (sizeof(D) >= 4) {
      if (c.from.name == "f64") return to_integer_rounded<D, double, false>(rounding);
      if (c.from.name == "f32") {
        return c.ftz ? to_integer_rounded<D, float, true>(rounding) : to_integer_rounded<D, float, false>(rounding);
      }
    }
    if (c.from.name == "f64") return &to_any_integer<D, double>;
    if (c.from.name == "f32") return &to_any_integer<D, float>;
    if (c.from.name == "f16") return &to_any_integer<D, F16>;
    if (c.from.name == "bf16") return &to_any_integer<D, Bf16>;
    return nullptr;
  });
}

Execute integer_to_integer(const Conversion& c) {
  return for_any_integer(c.to, [&]<class D>() -> Execute {
    return for_any_integer(
        c.from, [&]<class S>() -> Execute { return c.sat ? &clamp_integers<D, S> : &truncate_or_extend<D, S>; });
  });
}

// Registers wider than the types: slot[1] and slot[0] of the conversion proper are scratch.
struct Widths {
  Execute convert;
  bool wide_source = false;    // slot[2] has 64 bits
  uint32_t sign_bits = 0;      // of the result, to be extended; 0: zeros above it
  uint32_t register_bits = 0;  // of slot[3], the destination; 0: it is as wide as the result
};
void convert_widths(Warp& warp, const Instruction& i) {
  const Widths& w = *static_cast<const Widths*>(i.payload.get());
  if (w.wide_source) {
    const uint64_t* a = warp.u64(i.slot[2]);
    write_lanes(warp.active, warp.u32(i.slot[1]), [=](uint32_t lane) { return static_cast<uint32_t>(a[lane]); });
  }
  w.convert(warp, i);
  if (w.register_bits == 0) return;
  const uint32_t* narrow = warp.u32(i.slot[0]);
  const uint32_t shift = w.sign_bits ? 64 - w.sign_bits : 0;
  const uint64_t keep = w.register_bits == 64 ? ~uint64_t{0} : (uint64_t{1} << w.register_bits) - 1;
  const auto extended = [=](uint32_t lane) {
    return static_cast<uint64_t>(static_cast<int64_t>(uint64_t{narrow[lane]} << shift) >> shift) & keep;
  };
  if (w.register_bits == 64)
    write_lanes(warp.active, warp.u64(i.slot[3]), extended);
  else
    write_lanes(warp.active, warp.u32(i.slot[3]), [=](uint32_t lane) { return static_cast<uint32_t>(extended(lane)); });
}

// Source and destination of a conversion of single values.
void decode_scalars(Decoder& decoder, const Conversion& c, Execute convert) {
  expect_operands(decoder, 2);
  Instruction& out = decoder.out;
  Widths widths{convert};
  const uint32_t from_bits = decoder.register_bits(decoder.operand(1));
  const uint32_t to_bits = decoder.register_bits(decoder.operand(0));
  out.slot[1] = decoder.source(1, c.from);
  out.slot[0] = decoder.destination(0, c.to);
  out.execute = convert;
  constexpr uint32_t kScratch = kLanes * sizeof(uint32_t);
  if (from_bits == 64 && c.from.bits < 64) {
    widths.wide_source = true;
    out.slot[2] = out.slot[1];
    out.slot[1] = decoder.builder().scratch_slot(kScratch);
  }
  const bool is_signed = c.to.kind == TypeInfo::kSigned;
  if (to_bits > c.to.bits && (is_signed || to_bits == 64)) {
    widths.register_bits = to_bits;
    widths.sign_bits = is_signed ? c.to.bits : 0;
    out.slot[3] = out.slot[0];
    out.slot[0] = decoder.builder().scratch_slot(kScratch);
  }
  if (!widths.wide_source && widths.register_bits == 0) return;
  out.payload = std::make_shared<Widths>(widths);
  out.execute = &convert_widths;
}

// cvt.pack: two s32, each clamped to the type, above them the low part of c.
void pack_integers(Warp& warp, const Instruction& i) {
  const uint32_t bits = i.extra[0];
  const bool is_signed = i.extra[1];
  const int64_t lowest = is_signed ? -(int64_t{1} << (bits - 1)) : 0;
  const int64_t highest = (int64_t{1} << (is_signed ? bits - 1 : bits)) - 1;
  const uint32_t mask = (1u << bits) - 1;
  const uint32_t *a = warp.u32(i.slot[1]), *b = warp.u32(i.slot[2]);
  const uint32_t* c = i.slot[3] == kNoSlot ? nullptr : warp.u32(i.slot[3]);
  const auto clamped = [=](uint32_t x) {
    return static_cast<uint32_t>(std::clamp<int64_t>(static_cast<int32_t>(x), lowest, highest)) & mask;
  };
  write_lanes(warp.active, warp.u32(i.slot[0]), [=](uint32_t lane) {
    const uint32_t pair = clamped(a[lane]) << bits | clamped(b[lane]);
    return c == nullptr ? pair : pair | c[lane] << (2 * bits);
  });
}

void decode_pack(Decoder& decoder) {
  if (!decoder.take("sat")) decoder.unknown("cvt.pack needs .sat");
  const std::string to = decoder.take_any({"u16", "s16", "u8", "s8", "u4", "s4", "u2", "s2"});
  const TypeInfo from = decoder.take_type();
  if (to.empty() || from.name != "s32") decoder.unknown("cvt.pack has no such types");
  const auto bits = static_cast<uint32_t>(std::stoi(to.substr(1)));
  if (bits < 16 && decoder.take_type().name != "b32") decoder.unknown("the third source of cvt.pack is a .b32");
  decode_operands(decoder, type_info("b32"), bits == 16 ? 2 : 3, InstructionClass::kConversion);
  decoder.out.extra[0] = bits;
  decoder.out.extra[1] = to[0] == 's';
  decoder.out.execute = &pack_integers;
}

void decode_cvt(Decoder& decoder) {
  decoder.out.kind = InstructionClass::kConversion;
  if (decoder.take("pack")) return decode_pack(decoder);
  Conversion c;
  c.rounding = decoder.take_any({"rn", "rz", "rm", "rp", "rna", "rni", "rzi", "rmi", "rpi"});
  if (decoder.take("rs")) decoder.unsupported("stochastic rounding, .rs,");
  c.ftz = decoder.take("ftz");
  c.sat = decoder.take("sat");
  c.relu = decoder.take("relu");
  c.satfinite = decoder.take("satfinite");
  c.to = decoder.take_type();
  c.from = decoder.take_type();
  const uint32_t flags = convert_flags(decoder, c);
  decoder.out.extra[0] = flags;
  if (decode_packed_halves(decoder, c) || decode_float8(decoder, c)) return;

  const bool to_float = c.to.kind == TypeInfo::kFloat, from_float = c.from.kind == TypeInfo::kFloat;
  Execute convert = nullptr;
  if (to_float) {
    convert = convert_to_float(c, flags == 0);
  } else if (from_float) {
    if (!c.to_integral()) decoder.unknown("it needs .rni, .rzi, .rmi or .rpi");
    if (c.ftz && c.from.name != "f32") decoder.unknown(".ftz is for .f32");
    if (c.relu || c.satfinite) decoder.unknown(".relu and .satfinite are for floats");
    convert = float_to_integer(c, flags);
  } else {
    if (!c.rounding.empty() || c.ftz || c.relu || c.satfinite) decoder.unknown("it has a modifier for floats");
    convert = integer_to_integer(c);
  }
  if (convert == nullptr) decoder.unsupported("the conversion from ." + c.from.name + " to ." + c.to.name);
  decode_scalars(decoder, c, convert);
}

const RegisterDecoders kRegistered({{"cvt", decode_cvt}});

}  // namespace

uint32_t convert_flags(const Decoder& decoder, const Conversion& c) {
  uint32_t flags = (c.ftz ? kFtz : 0) | (c.sat ? kSat : 0) | (c.relu ? kRelu : 0) | (c.satfinite ? kSatfinite : 0) |
                   (c.to_integral() ? kIntegral : 0);
  const std::string mode = c.rounding.substr(0, 2);
  Rounding rounding = Rounding::kNearestEven;
  if (c.rounding == "rna")
    rounding = Rounding::kNearestAway;
  else if (mode == "rz")
    rounding = Rounding::kZero;
  else if (mode == "rm")
    rounding = Rounding::kDown;
  else if (mode == "rp")
    rounding = Rounding::kUp;
  if (c.rounding == "rna" && c.to.name != "tf32") decoder.unknown(".rna is for .tf32");
  return flags | static_cast<uint32_t>(rounding) << kRoundingShift;
}

}  // namespace vgpu
