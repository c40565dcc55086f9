// mov (registers, packing, unpacking, clocks), prmt, cvta, isspacep.
#include <array>
#include <chrono>
#include <cstring>

#include "core/access.h"
#include "exec/lanes.h"

namespace vgpu {
namespace {

template <class T>
void move(Warp& warp, const Instruction& i) {
  const T* a = warp.lanes<T>(i.slot[1]);
  write_lanes(warp.active, warp.lanes<T>(i.slot[0]), [=](uint32_t lane) { return a[lane]; });
}

// Of something wider than the register.
void move_low_16(Warp& warp, const Instruction& i) {
  const uint32_t* a = warp.u32(i.slot[1]);
  write_lanes(warp.active, warp.u32(i.slot[0]), [=](uint32_t lane) { return a[lane] & 0xffff; });
}

void move_128(Warp& warp, const Instruction& i) {
  for (uint32_t plane = 0; plane < 2; ++plane) {
    const uint64_t* a = warp.u64(i.slot[1]) + plane * kLanes;
    write_lanes(warp.active, warp.u64(i.slot[0]) + plane * kLanes, [=](uint32_t lane) { return a[lane]; });
  }
}

void move_predicate(Warp& warp, const Instruction& i) {
  warp.set_predicate(i.slot[0], warp.predicate(i.slot[1]) ^ i.extra[0]);
}

// {…} of kParts elements ↔ one register of type Whole. The first element is the lowest.
template <class Whole, int kParts>
void pack(Warp& warp, const Instruction& i) {
  constexpr int kBits = 8 * sizeof(Whole) / kParts;
  std::array<const uint32_t*, kParts> part;
  for (int k = 0; k < kParts; ++k) part[k] = warp.u32(i.list[k]);
  write_lanes(warp.active, warp.lanes<BitsOf<Whole>>(i.slot[0]), [=](uint32_t lane) {
    BitsOf<Whole> whole = 0;
    for (int k = 0; k < kParts; ++k) {
      whole |= (BitsOf<Whole>{part[k][lane]} & ((1ull << kBits) - 1)) << (k * kBits);
    }
    return whole;
  });
}

template <class Whole, int kParts>
void unpack(Warp& warp, const Instruction& i) {
  constexpr int kBits = 8 * sizeof(Whole) / kParts;
  const auto* whole = warp.lanes<BitsOf<Whole>>(i.slot[0]);
  for (int k = 0; k < kParts; ++k) {
    write_lanes(warp.active, warp.u32(i.list[k]), [=](uint32_t lane) {
      return static_cast<uint32_t>(whole[lane] >> (k * kBits) & ((1ull << kBits) - 1));
    });
  }
}

void pack_128(Warp& warp, const Instruction& i) {
  for (uint32_t plane = 0; plane < 2; ++plane) {
    const uint64_t* a = warp.u64(i.list[plane]);
    write_lanes(warp.active, warp.u64(i.slot[0]) + plane * kLanes, [=](uint32_t lane) { return a[lane]; });
  }
}

void unpack_128(Warp& warp, const Instruction& i) {
  for (uint32_t plane = 0; plane < 2; ++plane) {
    const uint64_t* a = warp.u64(i.slot[0]) + plane * kLanes;
    write_lanes(warp.active, warp.u64(i.list[plane]), [=](uint32_t lane) { return a[lane]; });
  }
}

struct Packing {
  uint32_t bits;
  size_t parts;
  const char* part;
  Execute pack, unpack;
};
constexpr Packing kPackings[] = {
    {16, 2, "b8", &pack<uint16_t, 2>, &unpack<uint16_t, 2>},
    {32, 2, "b16", &pack<uint32_t, 2>, &unpack<uint32_t, 2>},
    {32, 4, "b8", &pack<uint32_t, 4>, &unpack<uint32_t, 4>},
    {64, 2, "b32", &pack<uint64_t, 2>, &unpack<uint64_t, 2>},
    {64, 4, "b16", &pack<uint64_t, 4>, &unpack<uint64_t, 4>},
    {64, 8, "b8", &pack<uint64_t, 8>, &unpack<uint64_t, 8>},
    {128, 2, "b64", &pack_128, &unpack_128},
};

// Time passes as on the host, in nanoseconds. extra[0]: a shift, for the high words.
uint64_t now() {
  const auto time = std::chrono::steady_clock::now().time_since_epoch();
  return static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(time).count());
}
template <class T>
void read_clock(Warp& warp, const Instruction& i) {
  const T time = static_cast<T>(now() >> i.extra[0]);
  write_lanes(warp.active, warp.lanes<T>(i.slot[0]), [=](uint32_t) { return time; });
}

bool is_clock(const std::string& name) {
  return name == "%clock" || name == "%clock_hi" || name == "%clock64" || name == "%globaltimer" ||
         name == "%globaltimer_lo" || name == "%globaltimer_hi";
}

void decode_packing(Decoder& decoder, const TypeInfo& type, bool unpacks) {
  const std::vector<ptx::Operand>& elements = decoder.operand(unpacks ? 0 : 1).elements;
  for (const Packing& p : kPackings) {
    if (p.bits != type.bits || p.parts != elements.size()) continue;
    const TypeInfo part = type_info(p.part);
    decoder.out.copies = true;
    if (unpacks) decoder.out.slot[0] = exact_source(decoder, 1, type);
    for (const ptx::Operand& element : elements) {
      expect_width(decoder, element, part);
      decoder.out.list.push_back(unpacks ? decoder.destination(element, part) : decoder.source(element, part));
    }
    if (!unpacks) decoder.out.slot[0] = exact_destination(decoder, 0, type);
    decoder.out.execute = unpacks ? p.unpack : p.pack;
    return;
  }
  decoder.unknown("a ." + type.name + " has no " + std::to_string(elements.size()) + " elements");
}

void decode_mov(Decoder& decoder) {
  const TypeInfo type = decoder.take_type();
  expect_operands(decoder, 2);
  decoder.out.kind = InstructionClass::kMove;
  const ptx::Operand &to = decoder.operand(0), &from = decoder.operand(1);
  if (to.kind == ptx::OperandKind::kVector) return decode_packing(decoder, type, true);
  if (from.kind == ptx::OperandKind::kVector) return decode_packing(decoder, type, false);
  if (type.kind == TypeInfo::kPredicate) {
    bool negated = false;
    decoder.out.slot[1] = decoder.predicate_source(from, &negated);
    decoder.out.slot[0] = decoder.predicate_destination(to);
    decoder.out.extra[0] = negated ? ~0u : 0;
    decoder.out.copies = true;
    decoder.out.execute = &move_predicate;
    return;
  }
  if (from.kind == ptx::OperandKind::kSpecial && is_clock(from.name)) {
    if (type.bits < 32) decoder.unknown(from.name + " does not fit into ." + type.name);
    decoder.out.extra[0] = from.name.ends_with("_hi") ? 32 : 0;
    decoder.out.slot[0] = exact_destination(decoder, 0, type);
    decoder.out.execute = type.bits == 64 ? &read_clock<uint64_t> : &read_clock<uint32_t>;
    return;
  }
  decoder.out.copies = true;
  decoder.out.slot[1] = exact_source(decoder, 1, type);
  decoder.out.slot[0] = exact_destination(decoder, 0, type);
  if (type.bits == 128)
    decoder.out.execute = &move_128;
  else if (type.bits == 64)
    decoder.out.execute = &move<uint64_t>;
  else if (type.bits == 16 && from.kind != ptx::OperandKind::kRegister)
    decoder.out.execute = &move_low_16;
  else
    decoder.out.execute = &move<uint32_t>;
}

// prmt: byte k of b:a, or with bit 3 of the selector its sign, four times.
struct Permute {
  static uint32_t apply(uint32_t a, uint32_t b, uint32_t c) {
    const uint64_t bytes = static_cast<uint64_t>(b) << 32 | a;
    uint32_t result = 0;
    for (int k = 0; k < 4; ++k) {
      const uint32_t selector = c >> (4 * k);
      const auto byte = static_cast<uint32_t>(bytes >> (8 * (selector & 7))) & 0xff;
      const uint32_t sign = byte & 0x80 ? 0xff : 0;
      result |= (selector & 8 ? sign : byte) << (8 * k);
    }
    return result;
  }
};

// The same with a constant selector, extra[0], that asks for no signs.
void permute_by_constant(Warp& warp, const Instruction& i) {
  std::array<const uint32_t*, 4> from;
  std::array<uint32_t, 4> shift;
  for (int k = 0; k < 4; ++k) {
    const uint32_t selector = i.extra[0] >> (4 * k);
    from[k] = warp.u32(i.slot[selector & 4 ? 2 : 1]);
    shift[k] = 8 * (selector & 3);
  }
  write_lanes(warp.active, warp.u32(i.slot[0]), [=](uint32_t lane) {
    uint32_t result = 0;
    for (int k = 0; k < 4; ++k) result |= (from[k][lane] >> shift[k] & 0xff) << (8 * k);
    return result;
  });
}

// The modes are tables of such selectors, by the low two bits of c.
template <const std::array<uint32_t, 4>& kSelectors>
struct PermuteByMode {
  static uint32_t apply(uint32_t a, uint32_t b, uint32_t c) { return Permute::apply(a, b, kSelectors[c & 3]); }
};
constexpr std::array<uint32_t, 4> kForward{0x3210, 0x4321, 0x5432, 0x6543};
constexpr std::array<uint32_t, 4> kBackward{0x5670, 0x6701, 0x7012, 0x0123};
constexpr std::array<uint32_t, 4> kReplicate8{0x0000, 0x1111, 0x2222, 0x3333};
constexpr std::array<uint32_t, 4> kClampLeft{0x3210, 0x3211, 0x3222, 0x3333};
constexpr std::array<uint32_t, 4> kClampRight{0x0000, 0x1110, 0x2210, 0x3210};
constexpr std::array<uint32_t, 4> kReplicate16{0x1010, 0x3232, 0x1010, 0x3232};

void decode_prmt(Decoder& decoder) {
  const std::string mode = decoder.take_any({"f4e", "b4e", "rc8", "ecl", "ecr", "rc16"});
  // The mode follows the type in the text.
  const TypeInfo type = decoder.take_type();
  decode_operands(decoder, type, 3, InstructionClass::kMove);
  const ptx::Operand& selector = decoder.operand(3);
  if (mode.empty() && selector.kind == ptx::OperandKind::kImmediate && (selector.bits & 0x8888) == 0) {
    decoder.out.extra[0] = static_cast<uint32_t>(selector.bits);
    decoder.out.execute = &permute_by_constant;
    return;
  }
  decoder.out.execute = mode == "f4e"    ? &ternary<uint32_t, PermuteByMode<kForward>>
                        : mode == "b4e"  ? &ternary<uint32_t, PermuteByMode<kBackward>>
                        : mode == "rc8"  ? &ternary<uint32_t, PermuteByMode<kReplicate8>>
                        : mode == "ecl"  ? &ternary<uint32_t, PermuteByMode<kClampLeft>>
                        : mode == "ecr"  ? &ternary<uint32_t, PermuteByMode<kClampRight>>
                        : mode == "rc16" ? &ternary<uint32_t, PermuteByMode<kReplicate16>>
                                         : &ternary<uint32_t, Permute>;
}

// The window of a state space in generic addresses.
uint64_t take_window(Decoder& decoder) {
  const std::string space = decoder.take_any(
      {"global", "const", "shared", "shared::cta", "shared::cluster", "local", "param", "param::entry"});
  if (space.starts_with("shared")) return kSharedWindow;
  if (space == "local") return kLocalWindow;
  if (space.starts_with("param")) return kParameterWindow;
  if (space.empty()) decoder.unknown("it needs a state space");
  return 0;
}

void add_window(Warp& warp, const Instruction& i) {
  const uint64_t* a = warp.u64(i.slot[1]);
  const auto window = static_cast<uint64_t>(i.immediate);
  write_lanes(warp.active, warp.u64(i.slot[0]), [=](uint32_t lane) { return (a[lane] & 0xffffffff) | window; });
}

void remove_window(Warp& warp, const Instruction& i) {
  const uint64_t* a = warp.u64(i.slot[1]);
  write_lanes(warp.active, warp.u64(i.slot[0]), [=](uint32_t lane) { return a[lane] & 0xffffffff; });
}

void decode_cvta(Decoder& decoder) {
  const bool from_generic = decoder.take("to");
  const uint64_t window = take_window(decoder);
  const TypeInfo type = decoder.take_type();
  if (type.name != "u64") decoder.unknown("generic addresses have 64 bits");
  decode_operands(decoder, type, 1, InstructionClass::kMove);
  decoder.out.immediate = static_cast<int64_t>(window);
  decoder.out.execute = window == 0 ? &move<uint64_t> : from_generic ? &remove_window : &add_window;
}

void isspacep(Warp& warp, const Instruction& i) {
  const uint64_t* a = warp.u64(i.slot[1]);
  const auto window = static_cast<uint64_t>(i.immediate) >> kWindowShift;
  warp.set_predicate(i.slot[0], lane_mask([=](uint32_t lane) { return a[lane] >> kWindowShift == window; }));
}

// shared::cta is the block's own shared memory, whether or not the address names its rank.
void isspacep_own_shared(Warp& warp, const Instruction& i) {
  const uint64_t* a = warp.u64(i.slot[1]);
  const uint32_t own = warp.block->rank + 1;
  warp.set_predicate(i.slot[0], lane_mask([=](uint32_t lane) {
                       const auto rank = static_cast<uint32_t>(a[lane]) >> kRankShift;
                       return a[lane] >> kWindowShift == kSharedWindow >> kWindowShift && (rank == 0 || rank == own);
                     }));
}

void decode_isspacep(Decoder& decoder) {
  expect_operands(decoder, 2);
  decoder.out.kind = InstructionClass::kMove;
  if (decoder.take("const")) decoder.unsupported("telling constant from global memory");
  const bool cluster = decoder.take("shared::cluster");
  const uint64_t window = cluster ? kSharedWindow : take_window(decoder);
  decoder.out.immediate = static_cast<int64_t>(window);
  decoder.out.slot[1] = exact_source(decoder, 1, type_info("u64"));
  decoder.out.slot[0] = decoder.predicate_destination(decoder.operand(0));
  decoder.out.execute = window == kSharedWindow && !cluster ? &isspacep_own_shared : &isspacep;
}

const RegisterDecoders kRegistered({
    {"mov", decode_mov},
    {"prmt", decode_prmt},
    {"cvta", decode_cvta},
    {"isspacep", decode_isspacep},
});

}  // namespace
}  // namespace vgpu
