// Bits of integers: popc clz brev bfind bfe bfi fns bmsk szext.
#include <algorithm>
#include <bit>

#include "exec/lanes.h"

namespace vgpu {
namespace {

struct Popcount {
  template <class T>
  static uint32_t apply(T x) {
    return static_cast<uint32_t>(std::popcount(x));
  }
};
struct LeadingZeros {
  template <class T>
  static uint32_t apply(T x) {
    return static_cast<uint32_t>(std::countl_zero(x));
  }
};
// The highest bit that is not the sign; all ones when there is none.
template <bool kShiftAmount>
struct HighestBit {
  template <class T>
  static uint32_t apply(T x) {
    using U = std::make_unsigned_t<T>;
    const U magnitude = x < 0 ? static_cast<U>(~x) : static_cast<U>(x);
    const auto zeros = static_cast<uint32_t>(std::countl_zero(magnitude));
    if (magnitude == 0) return ~0u;
    return kShiftAmount ? zeros : static_cast<uint32_t>(8 * sizeof(T) - 1) - zeros;
  }
};
struct Reverse {
  template <class T>
  static T apply(T x) {
    constexpr int kBits = 8 * sizeof(T);
    for (int shift = 1; shift < kBits; shift *= 2) {
      // 0x5555…, 0x3333…, …: every other group of `shift` bits
      const T low = static_cast<T>(~T{0}) / static_cast<T>((T{1} << shift) + 1);
      x = (x >> shift & low) | (x & low) << shift;
    }
    return x;
  }
};

// The destination has 32 bits, whatever the source.
template <class T, class Op>
void to_count(Warp& warp, const Instruction& i) {
  const auto* a = warp.lanes<BitsOf<T>>(i.slot[1]);
  write_lanes(warp.active, warp.u32(i.slot[0]), [=](uint32_t lane) { return Op::apply(Stored<T>::load(a[lane])); });
}

template <class T>
T extract_field(T a, uint32_t b, uint32_t c) {
  using U = std::make_unsigned_t<T>;
  constexpr uint32_t kBits = 8 * sizeof(T);
  const uint32_t position = b & 0xff, length = c & 0xff;
  if (length == 0) return 0;
  const bool sign = std::is_signed_v<T> && static_cast<U>(a) >> std::min(position + length - 1, kBits - 1) & 1;
  const U shifted = position < kBits ? static_cast<U>(a) >> position : U{0};
  const uint32_t valid = std::min(length, position < kBits ? kBits - position : 0u);
  const U mask = valid >= kBits ? ~U{0} : (U{1} << valid) - 1;
  return static_cast<T>((shifted & mask) | (sign ? ~mask : U{0}));
}

template <class T>
void bfe(Warp& warp, const Instruction& i) {
  const auto* a = warp.lanes<BitsOf<T>>(i.slot[1]);
  const uint32_t *b = warp.u32(i.slot[2]), *c = warp.u32(i.slot[3]);
  write_lanes(warp.active, warp.lanes<BitsOf<T>>(i.slot[0]), [=](uint32_t lane) {
    return Stored<T>::store(extract_field<T>(Stored<T>::load(a[lane]), b[lane], c[lane]));
  });
}

template <class T>
T insert_field(T a, T b, uint32_t c, uint32_t d) {
  constexpr uint32_t kBits = 8 * sizeof(T);
  const uint32_t position = c & 0xff, length = d & 0xff;
  if (position >= kBits) return b;
  const T mask = (length >= kBits ? static_cast<T>(~T{0}) : (T{1} << length) - 1) << position;
  return (b & ~mask) | (a << position & mask);
}

template <class T>
void bfi(Warp& warp, const Instruction& i) {
  const T *a = warp.lanes<T>(i.slot[1]), *b = warp.lanes<T>(i.slot[2]);
  const uint32_t *c = warp.u32(i.slot[3]), *d = warp.u32(i.slot[4]);
  write_lanes(warp.active, warp.lanes<T>(i.slot[0]),
              [=](uint32_t lane) { return insert_field<T>(a[lane], b[lane], c[lane], d[lane]); });
}

uint32_t find_nth_set(uint32_t mask, uint32_t base, int32_t offset) {
  if (base > 31) return ~0u;
  if (offset == 0) return mask >> base & 1 ? base : ~0u;
  int64_t count = offset > 0 ? int64_t{offset} : -int64_t{offset};
  for (int position = static_cast<int>(base); position >= 0 && position < 32; position += offset > 0 ? 1 : -1) {
    if (mask >> position & 1 && --count == 0) return static_cast<uint32_t>(position);
  }
  return ~0u;
}

void fns(Warp& warp, const Instruction& i) {
  const uint32_t *mask = warp.u32(i.slot[1]), *base = warp.u32(i.slot[2]), *offset = warp.u32(i.slot[3]);
  write_lanes_singly(warp.active, warp.u32(i.slot[0]), [=](uint32_t lane) {
    return find_nth_set(mask[lane], base[lane], static_cast<int32_t>(offset[lane]));
  });
}

template <bool kClamp>
struct MakeMask {
  static uint32_t apply(uint32_t position, uint32_t width) {
    if (kClamp && position >= 32) return 0;
    const uint32_t from = position & 31, sum = from + (width & 31);
    const uint32_t above = sum >= 32 || (kClamp && width >= 32) ? 0 : ~0u << (sum & 31);
    return ~0u << from & ~above;
  }
};

// The low b bits of a, extended.
template <bool kClamp>
struct Extend {
  template <class T>
  static T apply(T a, T b) {
    const auto width = static_cast<uint32_t>(b);
    if (kClamp && width >= 32) return a;
    const uint32_t bits = width & 31, shift = (32 - bits) & 31;
    const T extended = static_cast<T>(static_cast<uint32_t>(a) << shift) >> shift;
    return bits == 0 ? T{0} : extended;
  }
};

template <class Op>
void decode_count(Decoder& decoder) {
  const TypeInfo type = decoder.take_type();
  expect_operands(decoder, 2);
  if (type.kind != TypeInfo::kUntyped) decoder.unknown("its types are .b32 and .b64");
  decoder.out.kind = InstructionClass::kInteger;
  decoder.out.slot[1] = exact_source(decoder, 1, type);
  decoder.out.slot[0] = exact_destination(decoder, 0, type_info("u32"));
  decoder.out.execute = for_width(decoder, type, []<class T>() -> Execute { return &to_count<T, Op>; });
}

void decode_bfind(Decoder& decoder) {
  const bool shift_amount = decoder.take("shiftamt");
  const TypeInfo type = decoder.take_type();
  expect_operands(decoder, 2);
  decoder.out.kind = InstructionClass::kInteger;
  decoder.out.slot[1] = exact_source(decoder, 1, type);
  decoder.out.slot[0] = exact_destination(decoder, 0, type_info("u32"));
  decoder.out.execute = for_integer(decoder, type, [&]<class T>() -> Execute {
    return shift_amount ? &to_count<T, HighestBit<true>> : &to_count<T, HighestBit<false>>;
  });
}

void decode_brev(Decoder& decoder) {
  const TypeInfo type = decoder.take_type();
  decode_operands(decoder, type, 1, InstructionClass::kInteger);
  decoder.out.execute = for_width(decoder, type, []<class T>() -> Execute { return &unary<T, Reverse>; });
}

void decode_bfe(Decoder& decoder) {
  const TypeInfo type = decoder.take_type();
  expect_operands(decoder, 4);
  decoder.out.kind = InstructionClass::kInteger;
  decoder.out.slot[1] = exact_source(decoder, 1, type);
  decoder.out.slot[2] = exact_source(decoder, 2, type_info("u32"));
  decoder.out.slot[3] = exact_source(decoder, 3, type_info("u32"));
  decoder.out.slot[0] = exact_destination(decoder, 0, type);
  decoder.out.execute = for_integer(decoder, type, []<class T>() -> Execute { return &bfe<T>; });
}

void decode_bfi(Decoder& decoder) {
  const TypeInfo type = decoder.take_type();
  expect_operands(decoder, 5);
  decoder.out.kind = InstructionClass::kInteger;
  decoder.out.slot[1] = exact_source(decoder, 1, type);
  decoder.out.slot[2] = exact_source(decoder, 2, type);
  decoder.out.slot[3] = exact_source(decoder, 3, type_info("u32"));
  decoder.out.slot[4] = exact_source(decoder, 4, type_info("u32"));
  decoder.out.slot[0] = exact_destination(decoder, 0, type);
  if (type.bits == 16) decoder.unknown("its types are .b32 and .b64");
  decoder.out.execute = type.bits == 32 ? &bfi<uint32_t> : &bfi<uint64_t>;
}

void decode_fns(Decoder& decoder) {
  decode_operands(decoder, decoder.take_type(), 3, InstructionClass::kInteger);
  decoder.out.execute = &fns;
}

bool take_clamp(Decoder& decoder) {
  const std::string mode = decoder.take_any({"clamp", "wrap"});
  if (mode.empty()) decoder.unknown("it needs .clamp or .wrap");
  return mode == "clamp";
}

void decode_bmsk(Decoder& decoder) {
  const bool clamp = take_clamp(decoder);
  decode_operands(decoder, decoder.take_type(), 2, InstructionClass::kInteger);
  decoder.out.execute = clamp ? &binary<uint32_t, MakeMask<true>> : &binary<uint32_t, MakeMask<false>>;
}

void decode_szext(Decoder& decoder) {
  const bool clamp = take_clamp(decoder);
  const TypeInfo type = decoder.take_type();
  decode_operands(decoder, type, 2, InstructionClass::kInteger);
  if (type.name == "u32") {
    decoder.out.execute = clamp ? &binary<uint32_t, Extend<true>> : &binary<uint32_t, Extend<false>>;
  } else {
    decoder.out.execute = clamp ? &binary<int32_t, Extend<true>> : &binary<int32_t, Extend<false>>;
  }
}

const RegisterDecoders kRegistered({
    {"popc", decode_count<Popcount>},
    {"clz", decode_count<LeadingZeros>},
    {"bfind", decode_bfind},
    {"brev", decode_brev},
    {"bfe", decode_bfe},
    {"bfi", decode_bfi},
    {"fns", decode_fns},
    {"bmsk", decode_bmsk},
    {"szext", decode_szext},
});

}  // namespace
}  // namespace vgpu
