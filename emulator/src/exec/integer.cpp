// Integer arithmetic: add sub mul mad mul24 mad24 sad div rem abs neg min max dp4a dp2a, and the carry chains.
#include <algorithm>
#include <limits>

#include "core/program_builder.h"
#include "exec/arithmetic.h"
#include "exec/lanes.h"

namespace vgpu {
namespace {

// Arithmetic modulo 2^n, in a type that no promotion makes signed.
template <class T>
using Modular = std::common_type_t<std::make_unsigned_t<T>, uint32_t>;

template <class T>
using Wider =
    std::conditional_t<sizeof(T) == 2, std::conditional_t<std::is_signed_v<T>, int32_t, uint32_t>,
                       std::conditional_t<sizeof(T) == 4, std::conditional_t<std::is_signed_v<T>, int64_t, uint64_t>,
                                          std::conditional_t<std::is_signed_v<T>, __int128, unsigned __int128>>>;

template <class T>
T product_high(T a, T b) {
  return static_cast<T>(static_cast<Wider<T>>(a) * static_cast<Wider<T>>(b) >> (8 * sizeof(T)));
}

int32_t clamp_to_int(int64_t x) {
  return static_cast<int32_t>(
      std::clamp<int64_t>(x, std::numeric_limits<int32_t>::min(), std::numeric_limits<int32_t>::max()));
}

// The low 24 bits, extended as the type says.
template <class T>
int64_t low_24(T x) {
  return static_cast<T>(static_cast<uint32_t>(x) << 8) >> 8;
}

struct Add {
  template <class T>
  static T apply(T a, T b) {
    return static_cast<T>(Modular<T>(a) + Modular<T>(b));
  }
};
struct Subtract {
  template <class T>
  static T apply(T a, T b) {
    return static_cast<T>(Modular<T>(a) - Modular<T>(b));
  }
};
struct AddSaturated {
  static int32_t apply(int32_t a, int32_t b) { return clamp_to_int(int64_t{a} + b); }
};
struct SubtractSaturated {
  static int32_t apply(int32_t a, int32_t b) { return clamp_to_int(int64_t{a} - b); }
};
struct MultiplyLow {
  template <class T>
  static T apply(T a, T b) {
    return static_cast<T>(Modular<T>(a) * Modular<T>(b));
  }
};
struct MultiplyHigh {
  template <class T>
  static T apply(T a, T b) {
    return product_high(a, b);
  }
};
struct MultiplyLow24 {
  template <class T>
  static T apply(T a, T b) {
    return static_cast<T>(low_24(a) * low_24(b));
  }
};
struct MultiplyHigh24 {
  template <class T>
  static T apply(T a, T b) {
    return static_cast<T>(low_24(a) * low_24(b) >> 16);
  }
};
// a·b + c for any of the products above.
template <class Product>
struct ThenAdd {
  template <class T>
  static T apply(T a, T b, T c) {
    return Add::apply(Product::template apply<T>(a, b), c);
  }
};
template <class Product>
struct ThenAddSaturated {
  static int32_t apply(int32_t a, int32_t b, int32_t c) {
    return AddSaturated::apply(Product::template apply<int32_t>(a, b), c);
  }
};
struct SumOfDifference {
  template <class T>
  static T apply(T a, T b, T c) {
    return static_cast<T>(Modular<T>(c) + (a < b ? Modular<T>(b) - Modular<T>(a) : Modular<T>(a) - Modular<T>(b)));
  }
};
// Division by zero: all ones, and the dividend as remainder. PTX leaves both open; this is what GPUs give.
struct Divide {
  template <class T>
  static T apply(T a, T b) {
    if (b == 0) return static_cast<T>(-1);
    if constexpr (std::is_signed_v<T>) {
      if (b == -1) return Subtract::apply(T{0}, a);
    }
    return static_cast<T>(a / b);
  }
};
struct Remainder {
  template <class T>
  static T apply(T a, T b) {
    if (b == 0) return a;
    if constexpr (std::is_signed_v<T>) {
      if (b == -1) return 0;
    }
    return static_cast<T>(a % b);
  }
};
struct Negate {
  template <class T>
  static T apply(T a) {
    return Subtract::apply(T{0}, a);
  }
};
struct Absolute {
  template <class T>
  static T apply(T a) {
    return a < 0 ? Negate::apply(a) : a;
  }
};
template <bool kRelu>
struct Minimum {
  template <class T>
  static T apply(T a, T b) {
    const T least = a < b ? a : b;
    return kRelu && least < 0 ? T{0} : least;
  }
};
template <bool kRelu>
struct Maximum {
  template <class T>
  static T apply(T a, T b) {
    const T most = a > b ? a : b;
    return kRelu && most < 0 ? T{0} : most;
  }
};

template <class T, class Op>
void divide(Warp& warp, const Instruction& i) {
  using S = Stored<T>;
  const auto* a = warp.lanes<BitsOf<T>>(i.slot[1]);
  const auto* b = warp.lanes<BitsOf<T>>(i.slot[2]);
  write_lanes_singly(warp.active, warp.lanes<BitsOf<T>>(i.slot[0]),
                     [=](uint32_t lane) { return S::store(Op::apply(S::load(a[lane]), S::load(b[lane]))); });
}

template <class T>
void multiply_wide(Warp& warp, const Instruction& i) {
  using W = Wider<T>;
  const uint32_t* a = warp.u32(i.slot[1]);
  const uint32_t* b = warp.u32(i.slot[2]);
  write_lanes(warp.active, warp.lanes<BitsOf<W>>(i.slot[0]), [=](uint32_t lane) {
    return Stored<W>::store(static_cast<W>(Stored<T>::load(a[lane])) * static_cast<W>(Stored<T>::load(b[lane])));
  });
}

template <class T>
void multiply_add_wide(Warp& warp, const Instruction& i) {
  using W = Wider<T>;
  const uint32_t* a = warp.u32(i.slot[1]);
  const uint32_t* b = warp.u32(i.slot[2]);
  const auto* c = warp.lanes<BitsOf<W>>(i.slot[3]);
  write_lanes(warp.active, warp.lanes<BitsOf<W>>(i.slot[0]), [=](uint32_t lane) {
    const W product = static_cast<W>(Stored<T>::load(a[lane])) * static_cast<W>(Stored<T>::load(b[lane]));
    return Stored<W>::store(product) + c[lane];
  });
}

// Packed or plain, as the type says.
template <class Op>
Execute binary_of(const Decoder& decoder, const TypeInfo& type) {
  if (type.name == "u16x2") return &packed<uint16_t, Op, 2>;
  if (type.name == "s16x2") return &packed<int16_t, Op, 2>;
  return for_integer(decoder, type, []<class T>() -> Execute { return &binary<T, Op>; });
}

template <class Op>
Execute ternary_of(const Decoder& decoder, const TypeInfo& type) {
  return for_integer(decoder, type, []<class T>() -> Execute { return &ternary<T, Op>; });
}

// Carry chains.

// What an instruction of a chain does with the condition code.
enum class Chain : uint8_t { kSet, kUse, kUseAndSet };

// What is added to: a (add), −b (sub), a·b's low or high half (mad).
struct AddTerms {
  static constexpr bool kBorrow = false;
  template <class T>
  static T first(T a, T, T) {
    return a;
  }
  template <class T>
  static T second(T, T b, T) {
    return b;
  }
};
struct SubtractTerms : AddTerms {
  static constexpr bool kBorrow = true;
};
template <bool kHigh>
struct ProductTerms {
  static constexpr bool kBorrow = false;
  template <class T>
  static T first(T a, T b, T) {
    return kHigh ? product_high(a, b) : static_cast<T>(Modular<T>(a) * Modular<T>(b));
  }
  template <class T>
  static T second(T, T, T c) {
    return c;
  }
};

// slot[4]: the condition code. The carry of a sum does not depend on the sign of its type.
template <class T, class Terms, Chain kChain>
void chain(Warp& warp, const Instruction& i) {
  using S = Stored<T>;
  using U = std::make_unsigned_t<T>;
  auto* to = warp.lanes<BitsOf<T>>(i.slot[0]);
  const auto* a = warp.lanes<BitsOf<T>>(i.slot[1]);
  const auto* b = warp.lanes<BitsOf<T>>(i.slot[2]);
  const auto* c = warp.lanes<BitsOf<T>>(i.slot[i.slot[3] == kNoSlot ? 2 : 3]);
  const LaneMask before = kChain == Chain::kSet ? 0 : warp.predicate(i.slot[4]);
  LaneMask after = 0;
  for_lanes(warp.active, [&](uint32_t lane) {
    const T x = S::load(a[lane]), y = S::load(b[lane]), z = S::load(c[lane]);
    const U carry = before >> lane & 1;
    const U first = static_cast<U>(Terms::first(x, y, z)), second = static_cast<U>(Terms::second(x, y, z));
    const U partial = Terms::kBorrow ? first - second : first + second;
    const U result = Terms::kBorrow ? partial - carry : partial + carry;
    const bool out = Terms::kBorrow ? first < second || partial < carry : partial < first || result < partial;
    after |= out ? 1u << lane : 0;
    to[lane] = result;
  });
  if (kChain != Chain::kUse) warp.set_predicate(i.slot[4], after);
}

template <class Terms>
void decode_chain(Decoder& decoder, bool uses, size_t sources) {
  const bool sets = decoder.take("cc");
  const TypeInfo type = decoder.take_type();
  if (type.bits < 32) decoder.unknown("carries need 32 or 64 bits");
  decode_operands(decoder, type, sources, InstructionClass::kInteger);
  decoder.out.slot[4] = decoder.builder().condition_code();
  decoder.out.execute = for_integer(decoder, type, [&]<class T>() -> Execute {
    if (!uses) return &chain<T, Terms, Chain::kSet>;
    return sets ? &chain<T, Terms, Chain::kUseAndSet> : &chain<T, Terms, Chain::kUse>;
  });
}

bool has(const Decoder& decoder, std::string_view modifier) {
  return std::find(decoder.rest().begin(), decoder.rest().end(), modifier) != decoder.rest().end();
}

}  // namespace

template <class Op, class Saturated, class Terms>
static void decode_sum(Decoder& decoder) {
  if (has(decoder, "cc")) return decode_chain<Terms>(decoder, false, 2);
  const bool saturate = decoder.take("sat");
  const TypeInfo type = decoder.take_type();
  if (saturate && type.name != "s32") decoder.unknown(".sat is for .s32");
  decoder.out.execute = saturate ? &binary<int32_t, Saturated> : binary_of<Op>(decoder, type);
  decode_operands(decoder, type, 2, InstructionClass::kInteger);
}

void decode_integer_add(Decoder& decoder) { decode_sum<Add, AddSaturated, AddTerms>(decoder); }
void decode_integer_sub(Decoder& decoder) { decode_sum<Subtract, SubtractSaturated, SubtractTerms>(decoder); }

static void decode_operands_wide(Decoder& decoder, const TypeInfo& type, size_t sources) {
  expect_operands(decoder, sources + 1);
  const TypeInfo wide =
      type_info(type.kind == TypeInfo::kSigned ? (type.bits == 16 ? "s32" : "s64") : (type.bits == 16 ? "u32" : "u64"));
  decoder.out.kind = InstructionClass::kInteger;
  decoder.out.slot[1] = exact_source(decoder, 1, type);
  decoder.out.slot[2] = exact_source(decoder, 2, type);
  if (sources == 3) decoder.out.slot[3] = exact_source(decoder, 3, wide);
  decoder.out.slot[0] = exact_destination(decoder, 0, wide);
}

void decode_integer_mul(Decoder& decoder) {
  const std::string part = decoder.take_any({"lo", "hi", "wide"});
  const TypeInfo type = decoder.take_type();
  if (part == "wide") {
    if (type.bits == 64) decoder.unknown(".wide is for 16 and 32 bits");
    decode_operands_wide(decoder, type, 2);
    decoder.out.execute = type.name == "u16"   ? &multiply_wide<uint16_t>
                          : type.name == "s16" ? &multiply_wide<int16_t>
                          : type.name == "u32" ? &multiply_wide<uint32_t>
                                               : &multiply_wide<int32_t>;
    return;
  }
  // .lo may be left out for 16 bits only in the oldest PTX; the text here always has it.
  if (part.empty()) decoder.unknown("it needs .lo, .hi or .wide");
  decoder.out.execute = part == "lo" ? binary_of<MultiplyLow>(decoder, type) : binary_of<MultiplyHigh>(decoder, type);
  decode_operands(decoder, type, 2, InstructionClass::kInteger);
}

void decode_integer_mad(Decoder& decoder) {
  const std::string part = decoder.take_any({"lo", "hi", "wide"});
  if (has(decoder, "cc")) {
    if (part == "lo") return decode_chain<ProductTerms<false>>(decoder, false, 3);
    if (part == "hi") return decode_chain<ProductTerms<true>>(decoder, false, 3);
    decoder.unknown(".cc needs .lo or .hi");
  }
  const bool saturate = decoder.take("sat");
  const TypeInfo type = decoder.take_type();
  if (saturate && (part != "hi" || type.name != "s32")) decoder.unknown(".sat is for .hi.s32");
  if (part == "wide") {
    if (type.bits == 64) decoder.unknown(".wide is for 16 and 32 bits");
    decode_operands_wide(decoder, type, 3);
    decoder.out.execute = type.name == "u16"   ? &multiply_add_wide<uint16_t>
                          : type.name == "s16" ? &multiply_add_wide<int16_t>
                          : type.name == "u32" ? &multiply_add_wide<uint32_t>
                                               : &multiply_add_wide<int32_t>;
    return;
  }
  if (part.empty()) decoder.unknown("it needs .lo, .hi or .wide");
  decoder.out.execute = saturate       ? &ternary<int32_t, ThenAddSaturated<MultiplyHigh>>
                        : part == "lo" ? ternary_of<ThenAdd<MultiplyLow>>(decoder, type)
                                       : ternary_of<ThenAdd<MultiplyHigh>>(decoder, type);
  decode_operands(decoder, type, 3, InstructionClass::kInteger);
}

void decode_integer_neg(Decoder& decoder) {
  const TypeInfo type = decoder.take_type();
  decoder.out.execute = for_integer(decoder, type, []<class T>() -> Execute { return &unary<T, Negate>; });
  decode_operands(decoder, type, 1, InstructionClass::kInteger);
}

void decode_integer_abs(Decoder& decoder) {
  const TypeInfo type = decoder.take_type();
  decoder.out.execute = for_integer(decoder, type, []<class T>() -> Execute { return &unary<T, Absolute>; });
  decode_operands(decoder, type, 1, InstructionClass::kInteger);
}

template <template <bool> class Op>
static void decode_extreme(Decoder& decoder) {
  const bool relu = decoder.take("relu");
  const TypeInfo type = decoder.take_type();
  if (relu && type.name != "s32" && type.name != "s16x2") decoder.unknown(".relu is for .s32 and .s16x2");
  decoder.out.execute = relu ? binary_of<Op<true>>(decoder, type) : binary_of<Op<false>>(decoder, type);
  decode_operands(decoder, type, 2, InstructionClass::kInteger);
}
void decode_integer_min(Decoder& decoder) { decode_extreme<Minimum>(decoder); }
void decode_integer_max(Decoder& decoder) { decode_extreme<Maximum>(decoder); }

void decode_integer_div(Decoder& decoder) {
  const TypeInfo type = decoder.take_type();
  decoder.out.execute = for_integer(decoder, type, []<class T>() -> Execute { return &divide<T, Divide>; });
  decode_operands(decoder, type, 2, InstructionClass::kInteger);
}

namespace {

void decode_rem(Decoder& decoder) {
  const TypeInfo type = decoder.take_type();
  decoder.out.execute = for_integer(decoder, type, []<class T>() -> Execute { return &divide<T, Remainder>; });
  decode_operands(decoder, type, 2, InstructionClass::kInteger);
}

void decode_sad(Decoder& decoder) {
  const TypeInfo type = decoder.take_type();
  decoder.out.execute = ternary_of<SumOfDifference>(decoder, type);
  decode_operands(decoder, type, 3, InstructionClass::kInteger);
}

void decode_addc(Decoder& decoder) { decode_chain<AddTerms>(decoder, true, 2); }
void decode_subc(Decoder& decoder) { decode_chain<SubtractTerms>(decoder, true, 2); }
void decode_madc(Decoder& decoder) {
  const std::string part = decoder.take_any({"lo", "hi"});
  if (part == "lo") return decode_chain<ProductTerms<false>>(decoder, true, 3);
  if (part == "hi") return decode_chain<ProductTerms<true>>(decoder, true, 3);
  decoder.unknown("it needs .lo or .hi");
}

void decode_mul24(Decoder& decoder) {
  const std::string part = decoder.take_any({"lo", "hi"});
  const TypeInfo type = decoder.take_type();
  if (part.empty() || type.bits != 32) decoder.unknown("it needs .lo or .hi, and 32 bits");
  decoder.out.execute = for_integer(decoder, type, [&]<class T>() -> Execute {
    if constexpr (sizeof(T) != 4)
      return nullptr;
    else
      return part == "lo" ? &binary<T, MultiplyLow24> : &binary<T, MultiplyHigh24>;
  });
  decode_operands(decoder, type, 2, InstructionClass::kInteger);
}

void decode_mad24(Decoder& decoder) {
  const std::string part = decoder.take_any({"lo", "hi"});
  const bool saturate = decoder.take("sat");
  const TypeInfo type = decoder.take_type();
  if (part.empty() || type.bits != 32) decoder.unknown("it needs .lo or .hi, and 32 bits");
  if (saturate && (part != "hi" || type.name != "s32")) decoder.unknown(".sat is for .hi.s32");
  decoder.out.execute = for_integer(decoder, type, [&]<class T>() -> Execute {
    if constexpr (sizeof(T) != 4)
      return nullptr;
    else if (saturate)
      return &ternary<int32_t, ThenAddSaturated<MultiplyHigh24>>;
    else
      return part == "lo" ? &ternary<T, ThenAdd<MultiplyLow24>> : &ternary<T, ThenAdd<MultiplyHigh24>>;
  });
  decode_operands(decoder, type, 3, InstructionClass::kInteger);
}

// Dot products of bytes: dp4a, and dp2a of 16-bit values of a with bytes of b, low or high pair.
template <bool kSignedA, bool kSignedB, int kTerms>
void dot_product(Warp& warp, const Instruction& i) {
  using A = std::conditional_t<kTerms == 4, std::conditional_t<kSignedA, int8_t, uint8_t>,
                               std::conditional_t<kSignedA, int16_t, uint16_t>>;
  using B = std::conditional_t<kSignedB, int8_t, uint8_t>;
  const uint32_t *a = warp.u32(i.slot[1]), *b = warp.u32(i.slot[2]), *c = warp.u32(i.slot[3]);
  const uint32_t shift = i.extra[0];
  write_lanes(warp.active, warp.u32(i.slot[0]), [=](uint32_t lane) {
    uint32_t sum = c[lane];
    for (int k = 0; k < kTerms; ++k) {
      const int32_t x = static_cast<A>(a[lane] >> (k * 32 / kTerms));
      const int32_t y = static_cast<B>(b[lane] >> (shift + 8 * k));
      sum += static_cast<uint32_t>(x) * static_cast<uint32_t>(y);
    }
    return sum;
  });
}

template <int kTerms>
void decode_dot_product(Decoder& decoder) {
  if (kTerms == 2) {
    const std::string part = decoder.take_any({"lo", "hi"});
    if (part.empty()) decoder.unknown("it needs .lo or .hi");
    decoder.out.extra[0] = part == "hi" ? 16 : 0;
  }
  const TypeInfo a = decoder.take_type(), b = decoder.take_type();
  if (a.bits != 32 || b.bits != 32) decoder.unknown("its types are .u32 and .s32");
  const bool signed_a = a.kind == TypeInfo::kSigned, signed_b = b.kind == TypeInfo::kSigned;
  decoder.out.execute =
      for_flags([]<bool kA, bool kB>() -> Execute { return &dot_product<kA, kB, kTerms>; }, signed_a, signed_b);
  decode_operands(decoder, signed_a || signed_b ? type_info("s32") : type_info("u32"), 3, InstructionClass::kInteger);
}

const RegisterDecoders kRegistered({
    {"rem", decode_rem},
    {"sad", decode_sad},
    {"addc", decode_addc},
    {"subc", decode_subc},
    {"madc", decode_madc},
    {"mul24", decode_mul24},
    {"mad24", decode_mad24},
    {"dp4a", decode_dot_product<4>},
    {"dp2a", decode_dot_product<2>},
});

}  // namespace
}  // namespace vgpu
