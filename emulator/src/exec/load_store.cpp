// ld, ldu, st: all spaces, widths and vectors. Caches are not modelled, so their hints are read and dropped.
#include <array>

#include "core/kernel.h"
#include "core/program_builder.h"
#include "exec/memory_operand.h"

namespace vgpu {

namespace {

template <class T>
inline T read(const std::byte* from) {
  T value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

// A value of memory type T as a register of type R holds it: extended or cut to R's width, then by zeros to a lane.
template <class T, class R>
inline auto extend(T value) {
  return static_cast<LaneOf<R>>(static_cast<R>(value));
}

// kCount elements of each lane, whose registers are i.list; kNoSlot: not wanted.
template <class T, class R, uint32_t kCount>
void copy_in(const Warp& warp, const Instruction& i, const Access& access) {
  if (is_contiguous(access)) {
    const std::byte* from = access.host[0];
    for (uint32_t e = 0; e < kCount; ++e) {
      if (i.list[e] == kNoSlot) continue;
      auto* to = warp.lanes<LaneOf<R>>(i.list[e]);
      for (uint32_t l = 0; l < kLanes; ++l) to[l] = extend<T, R>(read<T>(from + (l * kCount + e) * sizeof(T)));
    }
    return;
  }
  for (uint32_t e = 0; e < kCount; ++e) {
    if (i.list[e] == kNoSlot) continue;
    auto* to = warp.lanes<LaneOf<R>>(i.list[e]);
    for_lanes(access.lanes, [&](uint32_t l) { to[l] = extend<T, R>(read<T>(access.host[l] + e * sizeof(T))); });
  }
}

Touch read_touch(const Instruction& i) {
  return i.extra[2] & (kStrong | kBeforeSwap) ? Touch::kStrongRead : Touch::kRead;
}
Touch write_touch(const Instruction& i) { return i.extra[2] & kStrong ? Touch::kStrongWrite : Touch::kWrite; }

void finish(Warp& warp, const Instruction& i, const Access& access) {
  if (!i.control) return;
  if (access.touch == Touch::kStrongRead) acquire_again(warp, access);
  advance(warp);
}

template <class T, class R>
void load(Warp& warp, const Instruction& i) {
  if (i.control) part_ways(warp);
  Access access;
  set_access(warp, i, read_touch(i), access);
  switch (i.list.size()) {
    case 1:
      copy_in<T, R, 1>(warp, i, access);
      break;
    case 2:
      copy_in<T, R, 2>(warp, i, access);
      break;
    case 4:
      copy_in<T, R, 4>(warp, i, access);
      break;
    default:
      copy_in<T, R, 8>(warp, i, access);
      break;
  }
  finish(warp, i, access);
}

void load_quad(Warp& warp, const Instruction& i) {
  if (i.control) part_ways(warp);
  Access access;
  set_access(warp, i, read_touch(i), access);
  for_lanes(access.lanes, [&](uint32_t l) { set_lane(warp, i.list[0], l, read<Quad>(access.host[l])); });
  finish(warp, i, access);
}

// A kernel's parameter at an offset that is known: `immediate` bytes into the buffer, the same for all lanes.
template <class T, class R>
void load_parameter(Warp& warp, const Instruction& i) {
  const std::byte* from = warp.launch->parameters.data() + i.immediate;
  for (size_t e = 0; e < i.list.size(); ++e) {
    if (i.list[e] == kNoSlot) continue;
    const auto value = extend<T, R>(read<T>(from + e * sizeof(T)));
    auto* to = warp.lanes<LaneOf<R>>(i.list[e]);
    if (warp.active == kAllLanes) {
      for (uint32_t l = 0; l < kLanes; ++l) to[l] = value;
    } else {
      for_lanes(warp.active, [&](uint32_t l) { to[l] = value; });
    }
  }
}

void load_quad_parameter(Warp& warp, const Instruction& i) {
  const auto value = read<Quad>(warp.launch->parameters.data() + i.immediate);
  for_lanes(warp.active, [&](uint32_t l) { set_lane(warp, i.list[0], l, value); });
}

// T: in memory. L: a lane of the register.
template <class T, class L, uint32_t kCount>
void copy_out(Warp& warp, const Instruction& i, const Access& access) {
  if (access.must_match == 0 && is_contiguous(access)) {
    std::byte* to = access.host[0];
    std::array<T, kLanes * kCount> values;
    for (uint32_t e = 0; e < kCount; ++e) {
      const L* from = warp.lanes<L>(i.list[e]);
      for (uint32_t l = 0; l < kLanes; ++l) values[l * kCount + e] = static_cast<T>(from[l]);
    }
    std::memcpy(to, values.data(), sizeof values);
    return;
  }
  const auto values_of = [&](uint32_t l) {
    std::array<T, kCount> values;
    for (uint32_t e = 0; e < kCount; ++e) values[e] = static_cast<T>(warp.lanes<L>(i.list[e])[l]);
    return values;
  };
  for_lanes(access.must_match, [&](uint32_t l) {
    const auto values = values_of(l);
    if (std::memcmp(access.host[l], values.data(), sizeof values) != 0) refuse_race(access);
  });
  for_lanes(access.lanes, [&](uint32_t l) {
    const auto values = values_of(l);
    std::memcpy(access.host[l], values.data(), sizeof values);
  });
  if (!access.collision) return;
  for_lanes(access.lanes, [&](uint32_t l) {
    const auto values = values_of(l);
    if (std::memcmp(access.host[l], values.data(), sizeof values) != 0) refuse_collision(warp, i, access, l);
  });
}

template <class T, class L>
void store(Warp& warp, const Instruction& i) {
  if (i.control) part_ways(warp);
  Access access;
  set_access(warp, i, write_touch(i), access);
  switch (i.list.size()) {
    case 1:
      copy_out<T, L, 1>(warp, i, access);
      break;
    case 2:
      copy_out<T, L, 2>(warp, i, access);
      break;
    case 4:
      copy_out<T, L, 4>(warp, i, access);
      break;
    default:
      copy_out<T, L, 8>(warp, i, access);
      break;
  }
  finish(warp, i, access);
}

void store_quad(Warp& warp, const Instruction& i) {
  if (i.control) part_ways(warp);
  Access access;
  set_access(warp, i, write_touch(i), access);
  for_lanes(access.must_match, [&](uint32_t l) {
    if (read<Quad>(access.host[l]) != get_lane<Quad>(warp, i.list[0], l)) refuse_race(access);
  });
  for_lanes(access.lanes, [&](uint32_t l) {
    const auto value = get_lane<Quad>(warp, i.list[0], l);
    std::memcpy(access.host[l], &value, sizeof value);
  });
  finish(warp, i, access);
  if (!access.collision) return;
  for_lanes(access.lanes, [&](uint32_t l) {
    if (read<Quad>(access.host[l]) != get_lane<Quad>(warp, i.list[0], l)) refuse_collision(warp, i, access, l);
  });
}

struct Loads {
  Execute access = nullptr, parameter = nullptr;
};

template <class T, class R>
constexpr Loads loads_of() {
  return {load<T, R>, load_parameter<T, R>};
}

template <class T>
Loads loads_into(uint32_t register_bits) {
  if (register_bits == 8 && sizeof(T) <= 1) return loads_of<T, uint8_t>();
  if (register_bits == 16 && sizeof(T) <= 2) return loads_of<T, uint16_t>();
  if (register_bits == 32 && sizeof(T) <= 4) return loads_of<T, uint32_t>();
  if (register_bits == 64) return loads_of<T, uint64_t>();
  return {};
}

Loads choose_load(const TypeInfo& type, uint32_t register_bits) {
  const bool is_signed = type.kind == TypeInfo::kSigned;
  switch (type.bits) {
    case 8:
      return is_signed ? loads_into<int8_t>(register_bits) : loads_into<uint8_t>(register_bits);
    case 16:
      return is_signed ? loads_into<int16_t>(register_bits) : loads_into<uint16_t>(register_bits);
    case 32:
      return is_signed ? loads_into<int32_t>(register_bits) : loads_into<uint32_t>(register_bits);
    case 64:
      return loads_into<uint64_t>(register_bits);
    default:
      return register_bits == 128 ? Loads{load_quad, load_quad_parameter} : Loads{};
  }
}

Execute choose_store(uint32_t bits, bool wide) {
  switch (bits) {
    case 8:
      return wide ? store<uint8_t, uint64_t> : store<uint8_t, uint32_t>;
    case 16:
      return wide ? store<uint16_t, uint64_t> : store<uint16_t, uint32_t>;
    case 32:
      return wide ? store<uint32_t, uint64_t> : store<uint32_t, uint32_t>;
    case 64:
      return store<uint64_t, uint64_t>;
    default:
      return store_quad;
  }
}

TypeInfo take_memory_type(Decoder& d) {
  const TypeInfo type = d.take_type();
  const bool is_word = type.bits == 8 || type.bits == 16 || type.bits == 32 || type.bits == 64;
  const std::string bits = std::to_string(type.bits);
  const std::string& name = type.name;
  if (is_word && (name == "b" + bits || name == "u" + bits || name == "s" + bits)) return type;
  if (name == "b128" || name == "f32" || name == "f64") return type;
  d.unknown("has no type ." + name);
}

void check_vector(Decoder& d, const TypeInfo& type, uint32_t count, std::span<const ptx::Operand> elements) {
  if (elements.size() != count) {
    d.unknown("wants " + std::to_string(count) + " elements, got " + std::to_string(elements.size()));
  }
  const uint32_t bytes = count * type.bits / 8;
  const bool is_256 = bytes == 32 && type.bits >= 32;  // .v8.b32, .v4.b64
  if ((bytes > 16 && !is_256) || (count == 8 && !is_256)) d.unknown("a vector of this length and type does not exist");
}

// The parameter buffer's offset where it is known now; −1 where it is not.
int64_t parameter_offset(Decoder& d, const ptx::Operand& address, ptx::Space space, uint32_t bytes) {
  if (space != ptx::Space::kParam) return -1;
  const ptx::Operand& base = address.elements.at(0);
  int64_t offset = address.offset;
  if (base.kind == ptx::OperandKind::kSymbol) {
    offset += static_cast<int64_t>(d.builder().symbol_address(d, base, false)) + base.offset;
  } else if (base.kind == ptx::OperandKind::kImmediate) {
    offset += static_cast<int64_t>(base.bits);
  } else {
    return -1;
  }
  const uint32_t end = d.builder().kernel.parameter_bytes;
  if (offset < 0 || offset + bytes > end)
    d.unknown("reads beyond the kernel's " + std::to_string(end) + " parameter bytes");
  if (offset % bytes != 0) d.unknown("reads a parameter at an offset that is not aligned");
  return offset;
}

void decode_load(Decoder& d) {
  uint32_t flags = 0;
  if (d.take("nc")) flags |= kReadOnly;
  d.take("mmio");
  ptx::Space space = take_space(d, &flags);
  take_semantics(d, &flags);
  if (flags & kReleases) d.unknown("a load cannot release");
  const bool policy = take_cache_hints(d);
  const uint32_t count = take_vector(d);
  const TypeInfo type = take_memory_type(d);
  if (d.operands() > (policy ? 3u : 2u)) d.unknown("has too many operands");
  if (policy) d.source(2, type_info("b64"));

  const auto elements = elements_of(d.operand(0));
  check_vector(d, type, count, elements);
  const uint32_t bytes = count * type.bits / 8;
  const ptx::Operand& address = d.operand(1);
  space = d.address_space(address, space);
  const int64_t offset = parameter_offset(d, address, space, bytes);
  if (offset >= 0) {
    d.out.immediate = offset;
  } else {
    decode_address(d, address, space, bytes, flags);
  }

  uint32_t register_bits = 0;
  for (const ptx::Operand& e : elements) {
    if (e.kind == ptx::OperandKind::kSink) {
      d.out.list.push_back(kNoSlot);
      continue;
    }
    if (register_bits != 0 && d.register_bits(e) != register_bits) d.unknown("the vector's registers differ in width");
    register_bits = d.register_bits(e);
    d.out.list.push_back(d.destination(e, type));
  }
  const Loads loads = choose_load(type, register_bits == 0 ? type.bits : register_bits);
  d.out.execute = offset >= 0 ? loads.parameter : loads.access;
  if (d.out.execute == nullptr) d.unknown("cannot load ." + type.name + " into these registers");
  d.out.kind = offset >= 0 ? InstructionClass::kMove : InstructionClass::kMemory;
  d.out.control = offset < 0 && (flags & kStrong);
}

void decode_store(Decoder& d) {
  if (d.take("bulk")) d.unsupported("st.bulk");
  uint32_t flags = 0;
  d.take("mmio");
  ptx::Space space = take_space(d, &flags);
  if (space == ptx::Space::kConst) d.unknown("constant memory cannot be written");
  take_semantics(d, &flags);
  if (flags & kAcquires) d.unknown("a store cannot acquire");
  const bool policy = take_cache_hints(d);
  const uint32_t count = take_vector(d);
  const TypeInfo type = take_memory_type(d);
  if (d.operands() > (policy ? 3u : 2u)) d.unknown("has too many operands");
  if (policy) d.source(2, type_info("b64"));

  const auto elements = elements_of(d.operand(1));
  check_vector(d, type, count, elements);
  const ptx::Operand& address = d.operand(0);
  space = d.address_space(address, space);
  if (space == ptx::Space::kParam) d.unknown("a kernel's parameters cannot be written");
  decode_address(d, address, space, count * type.bits / 8, flags);

  bool wide = type.bits == 64;
  for (const ptx::Operand& e : elements) wide |= d.register_bits(e) == 64;
  for (const ptx::Operand& e : elements) {
    const bool is_register = e.kind == ptx::OperandKind::kRegister;
    if (is_register && wide && d.register_bits(e) != 64) d.unknown("the vector's registers differ in width");
    if (is_register || !wide || type.bits == 64) {
      d.out.list.push_back(d.source(e, type));
    } else {
      if (type.kind == TypeInfo::kFloat) d.unsupported("a number beside 64-bit registers that hold ." + type.name);
      d.out.list.push_back(d.source(e, type_info("b64")));
    }
  }
  d.out.execute = choose_store(type.bits, wide);
  d.out.control = flags & kStrong;
  d.out.kind = InstructionClass::kMemory;
}

const RegisterDecoders kRegistered({{"ld", decode_load}, {"ldu", decode_load}, {"st", decode_store}});

}  // namespace
}  // namespace vgpu
