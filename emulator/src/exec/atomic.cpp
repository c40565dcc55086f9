// atom and red. Elements of global memory change atomically between the host's threads; a block's shared memory
// belongs to one of them.
#include <array>
#include <atomic>

#include "exec/atomic_operations.h"
#include "exec/memory_operand.h"

namespace vgpu {

namespace {

using namespace atomic_operations;

constexpr uint32_t kLongestVector = 8;

// The order in which lanes take their turns. Hardware promises none, so with checks on it is a random one.
struct LaneOrder {
  uint32_t step = 1, first = 0;

  explicit LaneOrder(Warp& warp) {
    if (!warp.checks()) return;
    const uint64_t random = worker(warp).random();
    step = static_cast<uint32_t>(random) | 1;
    first = static_cast<uint32_t>(random >> 32);
  }
  uint32_t lane(uint32_t k) const { return (k * step + first) % kLanes; }
};

template <class T, Operation<T> kOperation>
T apply_alone(std::byte* to, T b, T c) {
  T old;
  std::memcpy(&old, to, sizeof old);
  const T result = kOperation(old, b, c);
  std::memcpy(to, &result, sizeof result);
  return old;
}

template <class T, Operation<T> kOperation>
T apply_atomically(std::byte* to, T b, T c) {
  if constexpr (std::is_same_v<T, Quad>) {
    using Word = unsigned __int128;
    auto* word = reinterpret_cast<Word*>(to);
    const auto word_of = [](Quad q) { return static_cast<Word>(q.high) << 64 | q.low; };
    Word seen = __sync_val_compare_and_swap(word, Word{0}, Word{0});
    for (;;) {
      const Quad old{static_cast<uint64_t>(seen), static_cast<uint64_t>(seen >> 64)};
      const Word now = __sync_val_compare_and_swap(word, seen, word_of(kOperation(old, b, c)));
      if (now == seen) return old;
      seen = now;
    }
  } else {
    std::atomic_ref<T> cell(*reinterpret_cast<T*>(to));
    T old = cell.load();
    while (!cell.compare_exchange_weak(old, kOperation(old, b, c))) {
    }
    return old;
  }
}

// Elements of a lane: extra[3]. i.list: the results' registers (atom only), then those of the operand. slot[1]: the
// second operand of cas. extra[4]: results are wanted.
template <class T, Operation<T> kOperation, Operation<T> kOnGlobal = kOperation>
void atomic(Warp& warp, const Instruction& i) {
  Access access;
  set_access(warp, i, Touch::kAtomic, access);
  bool changed = false;  // a compare-and-swap that fails is polling
  const uint32_t count = i.extra[3];
  const bool wants_result = i.extra[4];
  const Slot* operands = i.list.data() + (wants_result ? count : 0);
  const LaneOrder order(warp);
  for (uint32_t k = 0; k < kLanes; ++k) {
    const uint32_t l = order.lane(k);
    if (!(access.lanes >> l & 1)) continue;
    const bool global = access.space == ptx::Space::kGlobal ||
                        (access.space == ptx::Space::kNone && access.address[l] >> kWindowShift == 0);
    std::array<T, kLongestVector> b;  // all of it first: a result may go to a register of the operand
    for (uint32_t e = 0; e < count; ++e) b[e] = get_lane<T>(warp, operands[e], l);
    const T c = i.slot[1] == kNoSlot ? T{} : get_lane<T>(warp, i.slot[1], l);
    for (uint32_t e = 0; e < count; ++e) {
      std::byte* to = access.host[l] + e * sizeof(T);
      const T old = global ? apply_atomically<T, kOnGlobal>(to, b[e], c) : apply_alone<T, kOperation>(to, b[e], c);
      changed |= std::memcmp(&old, to, sizeof old) != 0;
      if (wants_result) set_lane(warp, i.list[e], l, old);
    }
  }
  if (changed) note_progress(warp);
  if (wants_result) acquire_again(warp, access);
}

template <class T>
Execute choose_bits(const std::string& operation) {
  if (operation == "exch") return atomic<T, exchange<T>>;
  if (operation == "cas") return atomic<T, compare_and_swap<T>>;
  if constexpr (std::is_integral_v<T>) {
    if (operation == "and") return atomic<T, bit_and<T>>;
    if (operation == "or") return atomic<T, bit_or<T>>;
    if (operation == "xor") return atomic<T, bit_xor<T>>;
  }
  return nullptr;
}

template <class T, class S>
Execute choose_integer(const std::string& operation) {
  if (operation == "add") return atomic<T, add<T>>;
  if (operation == "min") return atomic<T, smaller<S, T>>;
  if (operation == "max") return atomic<T, larger<S, T>>;
  if constexpr (std::is_same_v<S, uint32_t>) {
    if (operation == "inc") return atomic<T, increment>;
    if (operation == "dec") return atomic<T, decrement>;
  }
  return nullptr;
}

template <class Format>
Execute choose_half_operation(const std::string& operation, bool is_packed) {
  constexpr Operation<uint16_t> kAdd = add_half<Format>, kMin = choose_half<Format, false>,
                                kMax = choose_half<Format, true>;
  if (operation == "add") return is_packed ? atomic<uint32_t, packed<kAdd>> : atomic<uint16_t, kAdd>;
  if (operation == "min") return is_packed ? atomic<uint32_t, packed<kMin>> : atomic<uint16_t, kMin>;
  if (operation == "max") return is_packed ? atomic<uint32_t, packed<kMax>> : atomic<uint16_t, kMax>;
  return nullptr;
}

bool is_half(const std::string& type) { return type == "f16" || type == "f16x2" || type == "bf16" || type == "bf16x2"; }

Execute choose(const std::string& operation, const std::string& type) {
  if (type == "b16") return operation == "cas" ? choose_bits<uint16_t>(operation) : nullptr;
  if (type == "b32") return choose_bits<uint32_t>(operation);
  if (type == "b64") return choose_bits<uint64_t>(operation);
  if (type == "b128") return choose_bits<Quad>(operation);
  if (type == "u32") return choose_integer<uint32_t, uint32_t>(operation);
  if (type == "s32") return choose_integer<uint32_t, int32_t>(operation);
  if (type == "u64") return choose_integer<uint64_t, uint64_t>(operation);
  if (type == "s64") return operation == "add" ? nullptr : choose_integer<uint64_t, int64_t>(operation);
  if (type == "f32") return operation == "add" ? atomic<uint32_t, add_float, add_float_flushed> : nullptr;
  if (type == "f64") return operation == "add" ? atomic<uint64_t, add_double> : nullptr;
  if (type == "f16" || type == "f16x2") return choose_half_operation<HalfFormat>(operation, type == "f16x2");
  if (type == "bf16" || type == "bf16x2") return choose_half_operation<BfloatFormat>(operation, type == "bf16x2");
  return nullptr;
}

void check_form(Decoder& d, const std::string& operation, const TypeInfo& type, uint32_t count, ptx::Space space,
                bool noftz) {
  const bool half = is_half(type.name);
  if (half && !noftz) d.unknown("." + type.name + " wants .noftz");
  if (noftz && !half) d.unknown("." + type.name + " has no .noftz");
  if (count == 1) {
    if (half && operation != "add") d.unknown("." + operation + " of ." + type.name + " exists for vectors only");
    return;
  }
  const uint32_t longest = type.bits == 16 ? 8 : 4;
  const bool global = space == ptx::Space::kGlobal || space == ptx::Space::kNone;
  if (!global || !(half || type.name == "f32") || count > longest) {
    d.unknown("a vector of this length, type and space does not exist");
  }
}

void decode_atomic(Decoder& d, bool wants_result) {
  uint32_t flags = 0;
  take_semantics(d, &flags);
  if (!wants_result && (flags & kAcquires)) d.unknown("red cannot acquire");
  const ptx::Space space = take_space(d, &flags);
  const bool has_space = space == ptx::Space::kNone || space == ptx::Space::kGlobal || space == ptx::Space::kShared;
  if (!has_space) d.unknown("wants .global, .shared or a generic address");
  const bool policy = d.take("L2::cache_hint");
  const uint32_t count = take_vector(d);
  const bool noftz = d.take("noftz");
  const std::string operation = d.take_any({"add", "min", "max", "and", "or", "xor", "inc", "dec", "exch", "cas"});
  const TypeInfo type = d.take_type();
  const bool is_cas = operation == "cas";
  const bool needs_result = is_cas || operation == "exch";
  d.out.execute = needs_result && !wants_result ? nullptr : choose(operation, type.name);
  if (d.out.execute == nullptr) d.unknown("." + operation + " of ." + type.name + " does not exist");
  check_form(d, operation, type, count, space, noftz);

  size_t k = wants_result ? 1 : 0;  // the address
  const size_t operands = k + (is_cas ? 3 : 2);
  if (d.operands() != operands + policy) {
    d.unknown("wants " + std::to_string(operands + policy) + " operands, got " + std::to_string(d.operands()));
  }
  decode_address(d, d.operand(k), space, count * type.bits / 8, flags);
  const auto operand = elements_of(d.operand(k + 1));
  const auto result = wants_result ? elements_of(d.operand(0)) : operand;
  if (operand.size() != count || result.size() != count) d.unknown("wants " + std::to_string(count) + " elements");
  const auto check_width = [&](const ptx::Operand& o) {
    if (o.kind == ptx::OperandKind::kRegister && d.register_bits(o) != type.bits) {
      d.unknown("the register " + o.name + " does not have the width of ." + type.name);
    }
  };
  if (wants_result) {
    for (const ptx::Operand& o : result) check_width(o), d.out.list.push_back(d.destination(o, type));
  }
  for (const ptx::Operand& o : operand) check_width(o), d.out.list.push_back(d.source(o, type));
  if (is_cas) check_width(d.operand(k + 2)), d.out.slot[1] = d.source(k + 2, type);
  if (policy) d.source(operands, type_info("b64"));
  d.out.extra[3] = count;
  d.out.extra[4] = wants_result;
  d.out.kind = InstructionClass::kMemory;
}

void decode_atom(Decoder& d) { decode_atomic(d, true); }

void decode_red(Decoder& d) { decode_atomic(d, false); }

const RegisterDecoders kRegistered({{"atom", decode_atom}, {"red", decode_red}});

}  // namespace
}  // namespace vgpu
