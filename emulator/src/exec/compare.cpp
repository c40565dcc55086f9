// Comparison and selection: setp set selp slct testp.
#include <cmath>
#include <string>
#include <string_view>

#include "exec/float_lanes.h"

namespace vgpu {
namespace {

struct Equal {
  template <class T>
  static bool apply(T a, T b) {
    return a == b;
  }
};
// Of numbers only: false with a NaN.
struct Different {
  template <class T>
  static bool apply(T a, T b) {
    if constexpr (std::is_floating_point_v<T>)
      return a < b || a > b;
    else
      return a != b;
  }
};
struct Less {
  template <class T>
  static bool apply(T a, T b) {
    return a < b;
  }
};
struct LessEqual {
  template <class T>
  static bool apply(T a, T b) {
    return a <= b;
  }
};
struct Greater {
  template <class T>
  static bool apply(T a, T b) {
    return a > b;
  }
};
struct GreaterEqual {
  template <class T>
  static bool apply(T a, T b) {
    return a >= b;
  }
};
struct BothNumbers {
  template <class T>
  static bool apply(T a, T b) {
    return a == a && b == b;
  }
};
// The unordered comparisons are the opposite ones, negated.
template <class Opposite>
struct Negation {
  template <class T>
  static bool apply(T a, T b) {
    return !Opposite::apply(a, b);
  }
};

using Compare = LaneMask (*)(const Warp&, const Instruction&);

// slot[1] with slot[2]. kShift: which half of a packed register.
template <class T, class Op, bool kFtz = false, int kShift = 0>
LaneMask compare(const Warp& warp, const Instruction& i) {
  using S = Stored<T>;
  const auto *a = warp.lanes<BitsOf<T>>(i.slot[1]), *b = warp.lanes<BitsOf<T>>(i.slot[2]);
  return lane_mask([=](uint32_t lane) {
    auto x = S::load(a[lane] >> kShift), y = S::load(b[lane] >> kShift);
    if constexpr (kFtz && std::is_same_v<T, float>) x = flush(x), y = flush(y);
    if constexpr (kFtz && std::is_same_v<T, F16>) x = flush_half(x), y = flush_half(y);
    return Op::apply(x, y);
  });
}

template <class T, class Op, bool kFtz>
void setp(Warp& warp, const Instruction& i) {
  warp.set_predicate(i.slot[0], compare<T, Op, kFtz>(warp, i));
}

// A comparison as a mask, and as setp where nothing else is wanted.
struct Comparison {
  Compare low = nullptr;   // of the whole, or the low half
  Compare high = nullptr;  // the high half of packed types
  Execute setp = nullptr;
};

template <class Op, bool kFtz = false>
Comparison of_float(const TypeInfo& type) {
  if (type.name == "f32") return {&compare<float, Op, kFtz>, nullptr, &setp<float, Op, kFtz>};
  if (type.name == "f16") return {&compare<F16, Op, kFtz>, nullptr, &setp<F16, Op, kFtz>};
  if (type.name == "f16x2") return {&compare<F16, Op, kFtz>, &compare<F16, Op, kFtz, 16>, nullptr};
  if constexpr (!kFtz) {
    if (type.name == "f64") return {&compare<double, Op>, nullptr, &setp<double, Op, false>};
    if (type.name == "bf16") return {&compare<Bf16, Op>, nullptr, &setp<Bf16, Op, false>};
    if (type.name == "bf16x2") return {&compare<Bf16, Op>, &compare<Bf16, Op, false, 16>, nullptr};
  }
  return {};
}

template <class T, class Op>
Comparison of_integer() {
  return {&compare<T, Op>, nullptr, &setp<T, Op, false>};
}

template <class Op>
Comparison choose(const TypeInfo& type, bool ftz) {
  if (type.kind == TypeInfo::kFloat) return ftz ? of_float<Op, true>(type) : of_float<Op>(type);
  if (ftz) return {};
  if (type.kind == TypeInfo::kSigned) {
    if (type.bits == 16) return of_integer<int16_t, Op>();
    if (type.bits == 32) return of_integer<int32_t, Op>();
    if (type.bits == 64) return of_integer<int64_t, Op>();
  } else {
    if (type.bits == 16) return of_integer<uint16_t, Op>();
    if (type.bits == 32) return of_integer<uint32_t, Op>();
    if (type.bits == 64) return of_integer<uint64_t, Op>();
  }
  return {};
}

template <class Op>
Comparison choose_unordered(const TypeInfo& type, bool ftz) {
  if (type.kind != TypeInfo::kFloat) return {};
  return ftz ? of_float<Op, true>(type) : of_float<Op>(type);
}

Comparison comparison(const std::string& op, const TypeInfo& type, bool ftz) {
  if (op == "eq") return choose<Equal>(type, ftz);
  if (op == "ne") return choose<Different>(type, ftz);
  if (type.kind == TypeInfo::kUntyped) return {};
  if (op == "lt") return choose<Less>(type, ftz);
  if (op == "le") return choose<LessEqual>(type, ftz);
  if (op == "gt") return choose<Greater>(type, ftz);
  if (op == "ge") return choose<GreaterEqual>(type, ftz);
  if (type.kind == TypeInfo::kUnsigned) {
    if (op == "lo") return choose<Less>(type, ftz);
    if (op == "ls") return choose<LessEqual>(type, ftz);
    if (op == "hi") return choose<Greater>(type, ftz);
    if (op == "hs") return choose<GreaterEqual>(type, ftz);
  }
  if (op == "equ") return choose_unordered<Negation<Different>>(type, ftz);
  if (op == "neu") return choose_unordered<Negation<Equal>>(type, ftz);
  if (op == "ltu") return choose_unordered<Negation<GreaterEqual>>(type, ftz);
  if (op == "leu") return choose_unordered<Negation<Greater>>(type, ftz);
  if (op == "gtu") return choose_unordered<Negation<LessEqual>>(type, ftz);
  if (op == "geu") return choose_unordered<Negation<Less>>(type, ftz);
  if (op == "num") return choose_unordered<BothNumbers>(type, ftz);
  if (op == "nan") return choose_unordered<Negation<BothNumbers>>(type, ftz);
  return {};
}

enum Combine : uint32_t { kNone, kAnd, kOr, kXor };

LaneMask combined(const Warp& warp, const Instruction& i, LaneMask compared) {
  if (i.extra[0] == kNone) return compared;
  const LaneMask c = warp.predicate(i.slot[3]) ^ i.extra[1];
  return i.extra[0] == kAnd ? compared & c : i.extra[0] == kOr ? compared | c : compared ^ c;
}

// What the general forms of setp and set need: the payload of their instructions.
struct Parts {
  Comparison comparison;
  uint32_t when_true = 0;  // set: what the destination gets
};
const Parts& parts(const Instruction& i) { return *static_cast<const Parts*>(i.payload.get()); }

// slot[4]: the second destination. Of packed types it is about the high halves, else of the opposite comparison.
void setp_general(Warp& warp, const Instruction& i) {
  const Comparison& c = parts(i).comparison;
  const LaneMask first = c.low(warp, i);
  const LaneMask second = c.high ? c.high(warp, i) : ~first;
  const LaneMask p = combined(warp, i, first), q = combined(warp, i, second);
  warp.set_predicate(i.slot[0], p);
  if (i.slot[4] != kNoSlot) warp.set_predicate(i.slot[4], q);
}

void set_general(Warp& warp, const Instruction& i) {
  const Comparison& c = parts(i).comparison;
  const LaneMask low = combined(warp, i, c.low(warp, i));
  const LaneMask high = c.high ? combined(warp, i, c.high(warp, i)) : 0;
  const uint32_t when_true = parts(i).when_true;
  write_lanes(warp.active, warp.u32(i.slot[0]), [=](uint32_t lane) {
    return (low >> lane & 1 ? when_true : 0u) | (high >> lane & 1 ? when_true << 16 : 0u);
  });
}

// The comparison, .and/.or/.xor and .ftz; then the types are left.
struct Modifiers {
  std::string op;
  Combine combine = kNone;
  bool ftz = false;
};
Modifiers take_modifiers(Decoder& decoder) {
  Modifiers m;
  m.op = decoder.take_any({"eq", "ne", "lt", "le", "gt", "ge", "lo", "ls", "hi", "hs", "equ", "neu", "ltu", "leu",
                           "gtu", "geu", "num", "nan"});
  const std::string combine = decoder.take_any({"and", "or", "xor"});
  m.combine = combine == "and" ? kAnd : combine == "or" ? kOr : combine == "xor" ? kXor : kNone;
  m.ftz = decoder.take("ftz");
  return m;
}

void decode_sources(Decoder& decoder, const Modifiers& m, const TypeInfo& type) {
  expect_operands(decoder, m.combine == kNone ? 3 : 4);
  decoder.out.slot[1] = exact_source(decoder, 1, type);
  decoder.out.slot[2] = exact_source(decoder, 2, type);
  decoder.out.extra[0] = m.combine;
  if (m.combine == kNone) return;
  bool negated = false;
  decoder.out.slot[3] = decoder.predicate_source(decoder.operand(3), &negated);
  decoder.out.extra[1] = negated ? ~0u : 0;
}

InstructionClass kind_of(const TypeInfo& type) {
  return type.kind == TypeInfo::kFloat ? InstructionClass::kFloat : InstructionClass::kInteger;
}

void decode_setp(Decoder& decoder) {
  const Modifiers m = take_modifiers(decoder);
  const TypeInfo type = decoder.take_type();
  const Comparison c = comparison(m.op, type, m.ftz);
  if (c.low == nullptr) decoder.unknown("it has no such comparison of ." + type.name);
  decoder.out.kind = kind_of(type);
  decode_sources(decoder, m, type);
  const ptx::Operand& to = decoder.operand(0);
  const bool pair = to.kind == ptx::OperandKind::kPair;
  if (c.high && !pair) decoder.unknown("packed types need two destinations, p|q");
  decoder.out.slot[0] = decoder.predicate_destination(pair ? to.elements.at(0) : to);
  if (pair) decoder.out.slot[4] = decoder.predicate_destination(to.elements.at(1));
  if (!pair && m.combine == kNone) {
    decoder.out.execute = c.setp;
    return;
  }
  decoder.out.payload = std::make_shared<Parts>(Parts{c, 0});
  decoder.out.execute = &setp_general;
}

void decode_set(Decoder& decoder) {
  const Modifiers m = take_modifiers(decoder);
  const TypeInfo to = decoder.take_type(), type = decoder.take_type();
  const Comparison c = comparison(m.op, type, m.ftz);
  if (c.low == nullptr) decoder.unknown("it has no such comparison of ." + type.name);
  decoder.out.kind = kind_of(type);
  decode_sources(decoder, m, type);
  decoder.out.slot[0] = exact_destination(decoder, 0, to);
  uint32_t when_true = 0;
  if (to.name == "f32")
    when_true = bits_of(1.0f);
  else if (to.name == "f16" || to.name == "f16x2")
    when_true = float_to_half(1.0f);
  else if (to.name == "bf16" || to.name == "bf16x2")
    when_true = float_to_bfloat(1.0f);
  else if (to.bits == 16 || c.high)
    when_true = 0xffff;
  else if (to.bits == 32)
    when_true = ~0u;
  else
    decoder.unknown("its result cannot be ." + to.name);
  if ((to.name.ends_with("x2") && !c.high) || (c.high && to.bits != 32))
    decoder.unknown("its types do not go together");
  decoder.out.payload = std::make_shared<Parts>(Parts{c, when_true});
  decoder.out.execute = &set_general;
}

template <class T>
void select(Warp& warp, const Instruction& i) {
  using Bits = BitsOf<T>;
  const Bits *a = warp.lanes<Bits>(i.slot[1]), *b = warp.lanes<Bits>(i.slot[2]);
  const LaneMask c = warp.predicate(i.slot[3]) ^ i.extra[0];
  write_lanes(warp.active, warp.lanes<Bits>(i.slot[0]),
              [=](uint32_t lane) { return c & 1u << lane ? a[lane] : b[lane]; });
}

void decode_selp(Decoder& decoder) {
  const TypeInfo type = decoder.take_type();
  expect_operands(decoder, 4);
  decoder.out.kind = InstructionClass::kMove;
  decoder.out.slot[1] = exact_source(decoder, 1, type);
  decoder.out.slot[2] = exact_source(decoder, 2, type);
  bool negated = false;
  decoder.out.slot[3] = decoder.predicate_source(decoder.operand(3), &negated);
  decoder.out.extra[0] = negated ? ~0u : 0;
  decoder.out.slot[0] = exact_destination(decoder, 0, type);
  decoder.out.execute = for_width(decoder, type, []<class T>() -> Execute { return &select<T>; });
}

// c is an s32, or an f32 of which −0 counts as not negative and NaN as negative.
template <class T, class C, bool kFtz>
void select_by_sign(Warp& warp, const Instruction& i) {
  using Bits = BitsOf<T>;
  const Bits *a = warp.lanes<Bits>(i.slot[1]), *b = warp.lanes<Bits>(i.slot[2]);
  const uint32_t* c = warp.u32(i.slot[3]);
  write_lanes(warp.active, warp.lanes<Bits>(i.slot[0]),
              [=](uint32_t lane) { return flushed<C, kFtz>(Stored<C>::load(c[lane])) >= C{0} ? a[lane] : b[lane]; });
}

void decode_slct(Decoder& decoder) {
  const bool ftz = decoder.take("ftz");
  const TypeInfo type = decoder.take_type(), by = decoder.take_type();
  if (by.name != "s32" && by.name != "f32") decoder.unknown("its selector is .s32 or .f32");
  expect_operands(decoder, 4);
  decoder.out.kind = InstructionClass::kMove;
  decoder.out.slot[1] = exact_source(decoder, 1, type);
  decoder.out.slot[2] = exact_source(decoder, 2, type);
  decoder.out.slot[3] = exact_source(decoder, 3, by);
  decoder.out.slot[0] = exact_destination(decoder, 0, type);
  decoder.out.execute = for_width(decoder, type, [&]<class T>() -> Execute {
    if (by.name == "s32") return &select_by_sign<T, int32_t, false>;
    return ftz ? &select_by_sign<T, float, true> : &select_by_sign<T, float, false>;
  });
}

// By the bits of |x|.
struct Finite {
  template <class Format>
  static bool apply(uint64_t x) {
    return x < Format::kInfinity;
  }
};
struct Infinite {
  template <class Format>
  static bool apply(uint64_t x) {
    return x == Format::kInfinity;
  }
};
struct Number {
  template <class Format>
  static bool apply(uint64_t x) {
    return x <= Format::kInfinity;
  }
};
struct NotNumber {
  template <class Format>
  static bool apply(uint64_t x) {
    return x > Format::kInfinity;
  }
};
// Zeros count as normal.
struct Normal {
  template <class Format>
  static bool apply(uint64_t x) {
    return x == 0 || (x >> Format::kMantissaBits != 0 && x < Format::kInfinity);
  }
};
struct Subnormal {
  template <class Format>
  static bool apply(uint64_t x) {
    return x != 0 && x >> Format::kMantissaBits == 0;
  }
};

template <class Format, class Op>
void testp(Warp& warp, const Instruction& i) {
  using Bits = std::conditional_t<Format::kBits == 64, uint64_t, uint32_t>;
  const Bits* a = warp.lanes<Bits>(i.slot[1]);
  warp.set_predicate(i.slot[0], lane_mask([=](uint32_t lane) {
                       return Op::template apply<Format>(a[lane] & ~static_cast<Bits>(Format::kSign));
                     }));
}

template <class Format>
Execute test_of(const std::string& op) {
  if (op == "finite") return &testp<Format, Finite>;
  if (op == "infinite") return &testp<Format, Infinite>;
  if (op == "number") return &testp<Format, Number>;
  if (op == "notanumber") return &testp<Format, NotNumber>;
  if (op == "normal") return &testp<Format, Normal>;
  if (op == "subnormal") return &testp<Format, Subnormal>;
  return nullptr;
}

void decode_testp(Decoder& decoder) {
  const std::string op = decoder.take_any({"finite", "infinite", "number", "notanumber", "normal", "subnormal"});
  const TypeInfo type = decoder.take_type();
  expect_operands(decoder, 2);
  decoder.out.kind = InstructionClass::kFloat;
  decoder.out.slot[1] = exact_source(decoder, 1, type);
  decoder.out.slot[0] = decoder.predicate_destination(decoder.operand(0));
  if (type.name == "f32")
    decoder.out.execute = test_of<Single>(op);
  else if (type.name == "f64")
    decoder.out.execute = test_of<Double>(op);
  else
    decoder.unknown("it has no type ." + type.name);
}

const RegisterDecoders kRegistered({
    {"setp", decode_setp},
    {"set", decode_set},
    {"selp", decode_selp},
    {"slct", decode_slct},
    {"testp", decode_testp},
});

}  // namespace
}  // namespace vgpu
