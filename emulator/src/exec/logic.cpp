// Bitwise logic and shifts: and or xor not cnot lop3 shl shr shf; of predicates too.
#include <algorithm>
#include <functional>

#include "exec/lanes.h"

namespace vgpu {
namespace {

struct And {
  template <class T>
  static T apply(T a, T b) {
    return a & b;
  }
};
struct Or {
  template <class T>
  static T apply(T a, T b) {
    return a | b;
  }
};
struct Xor {
  template <class T>
  static T apply(T a, T b) {
    return a ^ b;
  }
};
struct Not {
  template <class T>
  static T apply(T a) {
    return static_cast<T>(~a);
  }
};
struct IsZero {
  template <class T>
  static T apply(T a) {
    return a == 0;
  }
};

// extra[k]: what to xor source k with, for `!`.
template <class Op>
void of_predicates(Warp& warp, const Instruction& i) {
  const LaneMask a = warp.predicate(i.slot[1]) ^ i.extra[1];
  const LaneMask b = warp.predicate(i.slot[2]) ^ i.extra[2];
  warp.set_predicate(i.slot[0], Op::apply(a, b));
}

void not_predicate(Warp& warp, const Instruction& i) {
  warp.set_predicate(i.slot[0], ~(warp.predicate(i.slot[1]) ^ i.extra[1]));
}

void decode_predicates(Decoder& decoder, size_t sources) {
  expect_operands(decoder, sources + 1);
  decoder.out.kind = InstructionClass::kInteger;
  for (size_t k = 1; k <= sources; ++k) {
    bool negated = false;
    decoder.out.slot[k] = decoder.predicate_source(decoder.operand(k), &negated);
    decoder.out.extra[k] = negated ? ~0u : 0;
  }
  decoder.out.slot[0] = decoder.predicate_destination(decoder.operand(0));
}

template <class Op>
void decode_logic(Decoder& decoder) {
  const TypeInfo type = decoder.take_type();
  if (type.kind == TypeInfo::kPredicate) {
    decode_predicates(decoder, 2);
    decoder.out.execute = &of_predicates<Op>;
    return;
  }
  decode_operands(decoder, type, 2, InstructionClass::kInteger);
  decoder.out.execute = for_width(decoder, type, []<class T>() -> Execute { return &binary<T, Op>; });
}

void decode_not(Decoder& decoder) {
  const TypeInfo type = decoder.take_type();
  if (type.kind == TypeInfo::kPredicate) {
    decode_predicates(decoder, 1);
    decoder.out.execute = &not_predicate;
    return;
  }
  decode_operands(decoder, type, 1, InstructionClass::kInteger);
  decoder.out.execute = for_width(decoder, type, []<class T>() -> Execute { return &unary<T, Not>; });
}

void decode_cnot(Decoder& decoder) {
  const TypeInfo type = decoder.take_type();
  decode_operands(decoder, type, 1, InstructionClass::kInteger);
  decoder.out.execute = for_width(decoder, type, []<class T>() -> Execute { return &unary<T, IsZero>; });
}

// lop3: bit 4a + 2b + c of the table is the result; row[k] is that bit in all places.
struct Table {
  uint32_t row[8];
  explicit Table(int64_t bits) {
    for (int k = 0; k < 8; ++k) row[k] = bits >> k & 1 ? ~0u : 0;
  }
  static uint32_t choose(uint32_t by, uint32_t zero, uint32_t one) { return zero ^ (by & (zero ^ one)); }
  uint32_t apply(uint32_t a, uint32_t b, uint32_t c) const {
    const uint32_t low = choose(b, choose(c, row[0], row[1]), choose(c, row[2], row[3]));
    const uint32_t high = choose(b, choose(c, row[4], row[5]), choose(c, row[6], row[7]));
    return choose(a, low, high);
  }
};

void lop3(Warp& warp, const Instruction& i) {
  const Table table(i.immediate);
  const uint32_t *a = warp.u32(i.slot[1]), *b = warp.u32(i.slot[2]), *c = warp.u32(i.slot[3]);
  write_lanes(warp.active, warp.u32(i.slot[0]), [=](uint32_t lane) { return table.apply(a[lane], b[lane], c[lane]); });
}

// slot[4]: the predicate result; slot[5]: the predicate that is combined with d != 0.
template <class Op>
void lop3_predicate(Warp& warp, const Instruction& i) {
  const Table table(i.immediate);
  const uint32_t *a = warp.u32(i.slot[1]), *b = warp.u32(i.slot[2]), *c = warp.u32(i.slot[3]);
  const LaneMask q = warp.predicate(i.slot[5]) ^ i.extra[5];
  const LaneMask nonzero = lane_mask([=](uint32_t lane) { return table.apply(a[lane], b[lane], c[lane]) != 0; });
  lop3(warp, i);
  warp.set_predicate(i.slot[4], Op::apply(nonzero, q));
}

void decode_lop3(Decoder& decoder) {
  const std::string combine = decoder.take_any({"or", "and"});
  const TypeInfo type = decoder.take_type();
  if (type.name != "b32") decoder.unknown("its type is .b32");
  expect_operands(decoder, combine.empty() ? 5 : 6);
  decoder.out.kind = InstructionClass::kInteger;
  for (size_t k = 1; k <= 3; ++k) decoder.out.slot[k] = exact_source(decoder, k, type);
  if (decoder.operand(4).kind != ptx::OperandKind::kImmediate) decoder.unknown("its table is an immediate");
  decoder.out.immediate = static_cast<int64_t>(decoder.operand(4).bits & 0xff);
  if (combine.empty()) {
    decoder.out.slot[0] = exact_destination(decoder, 0, type);
    decoder.out.execute = &lop3;
    return;
  }
  bool negated = false;
  decoder.out.slot[5] = decoder.predicate_source(decoder.operand(5), &negated);
  decoder.out.extra[5] = negated ? ~0u : 0;
  const ptx::Operand& pair = decoder.operand(0);
  if (pair.kind != ptx::OperandKind::kPair) decoder.unknown("it needs two destinations, d|p");
  decoder.out.slot[0] = decoder.destination(pair.elements[0], type);
  decoder.out.slot[4] = decoder.predicate_destination(pair.elements[1]);
  decoder.out.execute = combine == "or" ? &lop3_predicate<Or> : &lop3_predicate<And>;
}

// The shift amount has 32 bits, whatever the type, and is clamped to the width.
template <class T>
void shift_left(Warp& warp, const Instruction& i) {
  constexpr uint32_t kBits = 8 * sizeof(T);
  const auto* a = warp.lanes<BitsOf<T>>(i.slot[1]);
  const uint32_t* b = warp.u32(i.slot[2]);
  write_lanes(warp.active, warp.lanes<BitsOf<T>>(i.slot[0]), [=](uint32_t lane) {
    const BitsOf<T> x = a[lane], n = b[lane];
    return Stored<T>::store(static_cast<T>(n < kBits ? x << (n & (kBits - 1)) : BitsOf<T>{0}));
  });
}

template <class T>
void shift_right(Warp& warp, const Instruction& i) {
  constexpr uint32_t kBits = 8 * sizeof(T);
  const auto* a = warp.lanes<BitsOf<T>>(i.slot[1]);
  const uint32_t* b = warp.u32(i.slot[2]);
  write_lanes(warp.active, warp.lanes<BitsOf<T>>(i.slot[0]), [=](uint32_t lane) {
    const T x = Stored<T>::load(a[lane]);
    const BitsOf<T> n = b[lane];
    const T shifted = static_cast<T>(x >> std::min<BitsOf<T>>(n, kBits - 1));
    return Stored<T>::store(std::is_signed_v<T> || n < kBits ? shifted : T{0});
  });
}

void decode_shift_operands(Decoder& decoder, const TypeInfo& type) {
  expect_operands(decoder, 3);
  decoder.out.kind = InstructionClass::kInteger;
  decoder.out.slot[1] = exact_source(decoder, 1, type);
  decoder.out.slot[2] = exact_source(decoder, 2, type_info("u32"));
  decoder.out.slot[0] = exact_destination(decoder, 0, type);
}

void decode_shl(Decoder& decoder) {
  const TypeInfo type = decoder.take_type();
  decode_shift_operands(decoder, type);
  decoder.out.execute = for_width(decoder, type, []<class T>() -> Execute { return &shift_left<T>; });
}

void decode_shr(Decoder& decoder) {
  const TypeInfo type = decoder.take_type();
  decode_shift_operands(decoder, type);
  if (type.kind == TypeInfo::kSigned) {
    decoder.out.execute = for_integer(decoder, type, []<class T>() -> Execute { return &shift_right<T>; });
  } else {
    decoder.out.execute = for_width(decoder, type, []<class T>() -> Execute { return &shift_right<T>; });
  }
}

// b above a as 64 bits, shifted: the high word of a shift to the left, the low word of one to the right.
template <bool kLeft, bool kClamp>
struct FunnelShift {
  static uint32_t apply(uint32_t a, uint32_t b, uint32_t c) {
    const uint32_t n = kClamp ? std::min(c, 32u) : c & 31;
    const uint64_t both = static_cast<uint64_t>(b) << 32 | a;
    return static_cast<uint32_t>(kLeft ? both << n >> 32 : both >> n);
  }
};

void decode_shf(Decoder& decoder) {
  const std::string direction = decoder.take_any({"l", "r"});
  const std::string mode = decoder.take_any({"clamp", "wrap"});
  const TypeInfo type = decoder.take_type();
  if (direction.empty() || mode.empty() || type.name != "b32")
    decoder.unknown("it needs .l or .r, .clamp or .wrap, .b32");
  decode_operands(decoder, type, 3, InstructionClass::kInteger);
  decoder.out.execute =
      for_flags([]<bool kLeft, bool kClamp>() -> Execute { return &ternary<uint32_t, FunnelShift<kLeft, kClamp>>; },
                direction == "l", mode == "clamp");
}

const RegisterDecoders kRegistered({
    {"and", decode_logic<And>},
    {"or", decode_logic<Or>},
    {"xor", decode_logic<Xor>},
    {"not", decode_not},
    {"cnot", decode_cnot},
    {"lop3", decode_lop3},
    {"shl", decode_shl},
    {"shr", decode_shr},
    {"shf", decode_shf},
});

}  // namespace
}  // namespace vgpu
