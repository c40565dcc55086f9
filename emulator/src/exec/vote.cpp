// Collectives that give one answer for all their lanes: vote, match, redux, elect; activemask; bar.warp.sync.
#include <algorithm>

#include "exec/collective.h"

namespace vgpu {
namespace {

void write(Warp& warp, Slot slot, LaneMask lanes, uint32_t value) {
  uint32_t* d = warp.u32(slot);
  for (uint32_t l = 0; l < kLanes; ++l) d[l] = lanes >> l & 1 ? value : d[l];
}

void write_predicate(Warp& warp, Slot slot, LaneMask lanes, bool value) {
  LaneMask* p = warp.lanes<LaneMask>(slot);
  *p = value ? *p | lanes : *p & ~lanes;
}

enum class Vote { kAny, kAll, kUniform, kBallot };

// Slots: d, predicate, members; extra[0]: the predicate is negated.
template <Vote kVote>
void vote(Warp& warp, const Instruction& i) {
  collective(warp, i, i.slot[2], [&](LaneMask lanes) {
    const LaneMask yes = (warp.predicate(i.slot[1]) ^ (i.extra[0] ? kAllLanes : 0)) & lanes;
    switch (kVote) {
      case Vote::kAny:
        return write_predicate(warp, i.slot[0], lanes, yes != 0);
      case Vote::kAll:
        return write_predicate(warp, i.slot[0], lanes, yes == lanes);
      case Vote::kUniform:
        return write_predicate(warp, i.slot[0], lanes, yes == 0 || yes == lanes);
      case Vote::kBallot:
        return write(warp, i.slot[0], lanes, yes);
    }
  });
}

void decode_vote(Decoder& d) {
  if (!d.take("sync")) d.unsupported("vote without .sync");
  const std::string mode = d.take_any({"any", "all", "uni", "ballot"});
  const bool ballot = mode == "ballot";
  if (!d.take(ballot ? "b32" : "pred")) d.unknown("wants .any.pred, .all.pred, .uni.pred or .ballot.b32");
  bool negated = false;
  d.out.slot[1] = d.predicate_source(d.operand(1), &negated);
  d.out.extra[0] = negated;
  d.out.slot[2] = d.source(2, type_info("b32"));
  d.out.slot[0] = ballot ? d.destination(0, type_info("b32")) : d.predicate_destination(d.operand(0));
  decode_collective(d, mode == "any"   ? vote<Vote::kAny>
                       : mode == "all" ? vote<Vote::kAll>
                       : mode == "uni" ? vote<Vote::kUniform>
                                       : vote<Vote::kBallot>);
}

// Slots: d, p or none, a, members.
template <class T>
void match_any(Warp& warp, const Instruction& i) {
  collective(warp, i, i.slot[3], [&](LaneMask lanes) {
    const T* a = warp.lanes<T>(i.slot[2]);
    uint32_t result[kLanes] = {};
    for (LaneMask rest = lanes; rest != 0;) {
      const T value = a[__builtin_ctz(rest)];
      LaneMask same = 0;
      for (uint32_t l = 0; l < kLanes; ++l) same |= LaneMask{a[l] == value} << l;
      same &= lanes;
      for_lanes(same, [&](uint32_t l) { result[l] = same; });
      rest &= ~same;
    }
    uint32_t* d = warp.u32(i.slot[0]);
    for_lanes(lanes, [&](uint32_t l) { d[l] = result[l]; });
  });
}

template <class T>
void match_all(Warp& warp, const Instruction& i) {
  collective(warp, i, i.slot[3], [&](LaneMask lanes) {
    const T* a = warp.lanes<T>(i.slot[2]);
    const T value = a[__builtin_ctz(lanes)];
    bool same = true;
    for_lanes(lanes, [&](uint32_t l) { same &= a[l] == value; });
    write(warp, i.slot[0], lanes, same ? lanes : 0);
    if (i.slot[1] != kNoSlot) write_predicate(warp, i.slot[1], lanes, same);
  });
}

void decode_match(Decoder& d) {
  const std::string mode = d.take_any({"any", "all"});
  if (mode.empty() || !d.take("sync")) d.unknown("wants .any.sync or .all.sync");
  const bool wide = d.take("b64");
  if (!wide && !d.take("b32")) d.unknown("wants .b32 or .b64");
  const ptx::Operand& to = d.operand(0);
  const bool pair = to.kind == ptx::OperandKind::kPair;
  if (pair && mode == "any") d.unknown(".any has no predicate result");
  d.out.slot[2] = d.source(1, type_info(wide ? "b64" : "b32"));
  d.out.slot[3] = d.source(2, type_info("b32"));
  d.out.slot[0] = d.destination(pair ? to.elements.at(0) : to, type_info("b32"));
  if (pair) d.out.slot[1] = d.predicate_destination(to.elements.at(1));
  if (mode == "any") {
    decode_collective(d, wide ? match_any<uint64_t> : match_any<uint32_t>);
  } else {
    decode_collective(d, wide ? match_all<uint64_t> : match_all<uint32_t>);
  }
}

// Slots: d, a, members.
template <class T, T (*kOperation)(T, T)>
void reduce(Warp& warp, const Instruction& i) {
  collective(warp, i, i.slot[2], [&](LaneMask lanes) {
    const T* a = warp.lanes<T>(i.slot[1]);
    const auto first = static_cast<uint32_t>(__builtin_ctz(lanes));
    T result = a[first];
    for_lanes(lanes & (lanes - 1), [&](uint32_t l) { result = kOperation(result, a[l]); });
    write(warp, i.slot[0], lanes, static_cast<uint32_t>(result));
  });
}

uint32_t add(uint32_t a, uint32_t b) { return a + b; }
uint32_t bit_and(uint32_t a, uint32_t b) { return a & b; }
uint32_t bit_or(uint32_t a, uint32_t b) { return a | b; }
uint32_t bit_xor(uint32_t a, uint32_t b) { return a ^ b; }
template <class T>
T smaller(T a, T b) {
  return std::min(a, b);
}
template <class T>
T larger(T a, T b) {
  return std::max(a, b);
}

void decode_redux(Decoder& d) {
  if (!d.take("sync")) d.unknown("wants .sync");
  const std::string operation = d.take_any({"add", "min", "max", "and", "or", "xor"});
  const TypeInfo type = d.take_type();
  if (type.name == "f32") d.unsupported("redux.sync of .f32");
  const bool is_signed = type.name == "s32";
  const bool is_number = is_signed || type.name == "u32", is_bits = type.name == "b32";
  Execute execute = nullptr;
  if (is_number && operation == "add") execute = reduce<uint32_t, add>;
  if (is_number && operation == "min")
    execute = is_signed ? reduce<int32_t, smaller<int32_t>> : reduce<uint32_t, smaller<uint32_t>>;
  if (is_number && operation == "max")
    execute = is_signed ? reduce<int32_t, larger<int32_t>> : reduce<uint32_t, larger<uint32_t>>;
  if (is_bits && operation == "and") execute = reduce<uint32_t, bit_and>;
  if (is_bits && operation == "or") execute = reduce<uint32_t, bit_or>;
  if (is_bits && operation == "xor") execute = reduce<uint32_t, bit_xor>;
  if (execute == nullptr) d.unknown("." + operation + " of ." + type.name);
  d.out.slot[1] = d.source(1, type);
  d.out.slot[2] = d.source(2, type_info("b32"));
  d.out.slot[0] = d.destination(0, type);
  decode_collective(d, execute);
}

void active_mask(Warp& warp, const Instruction& i) { write(warp, i.slot[0], warp.active, warp.active); }

void decode_activemask(Decoder& d) {
  if (!d.take("b32")) d.unknown("wants .b32");
  d.out.slot[0] = d.destination(0, type_info("b32"));
  d.out.kind = InstructionClass::kCollective;
  d.out.execute = active_mask;
}

// Slots: d, p, members. The lowest lane is elected, as hardware does.
void elect(Warp& warp, const Instruction& i) {
  collective(warp, i, i.slot[2], [&](LaneMask lanes) {
    const auto leader = static_cast<uint32_t>(__builtin_ctz(lanes));
    write(warp, i.slot[0], lanes, leader);
    LaneMask* p = warp.lanes<LaneMask>(i.slot[1]);
    *p = (*p & ~lanes) | 1u << leader;
  });
}

void decode_elect(Decoder& d) {
  if (!d.take("sync")) d.unknown("wants .sync");
  const ptx::Operand& to = d.operand(0);
  if (to.kind != ptx::OperandKind::kPair) d.unknown("wants d|p as its result");
  d.out.slot[2] = d.source(1, type_info("b32"));
  d.out.slot[0] = d.destination(to.elements.at(0), type_info("b32"));
  d.out.slot[1] = d.predicate_destination(to.elements.at(1));
  decode_collective(d, elect);
}

// Slot 0: members.
void synchronise_warp(Warp& warp, const Instruction& i);

// Lanes may meet at different bar.warp.sync: those of a warp that wait at any with this member mask.
LaneMask lanes_at_warp_barriers(const Warp& warp, uint32_t members) {
  LaneMask lanes = 0;
  for (const Group& g : warp.groups) {
    const Instruction& at = warp.program->code[g.pc];
    if (g.wait != Wait::kConverge || at.execute != synchronise_warp) continue;
    for_lanes(g.lanes, [&](uint32_t l) { lanes |= LaneMask{warp.u32(at.slot[0])[l] == members} << l; });
  }
  return lanes;
}

void synchronise_warp(Warp& warp, const Instruction& i) {
  const uint32_t members = warp.u32(i.slot[0])[__builtin_ctz(warp.active)];
  collective(warp, i, i.slot[0], [&](LaneMask lanes) {
    if (warp.checks()) warp.clocks.synchronise(lanes, warp.alive);
  });
  if (warp.group().wait != Wait::kConverge) return;
  const LaneMask wanted = members & warp.alive;
  if ((lanes_at_warp_barriers(warp, members) & wanted) != wanted) return;
  if (warp.checks()) warp.clocks.synchronise(wanted, warp.alive);
  for (Group& g : warp.groups) {
    if (!(g.lanes & wanted)) continue;
    if (g.lanes & ~wanted) fault(warp, i, FaultKind::kDivergentCollective, "the lanes' member masks differ");
    g.wait = Wait::kNone;
    ++g.pc;
  }
}

}  // namespace

// bar.warp.sync; `bar` itself is in barrier.cpp.
void decode_warp_barrier(Decoder& d) {
  if (!d.take("sync")) d.unknown("wants .warp.sync");
  d.out.slot[0] = d.source(0, type_info("b32"));
  decode_collective(d, synchronise_warp);
}

namespace {

const RegisterDecoders kRegistered({{"vote", decode_vote},
                                    {"match", decode_match},
                                    {"redux", decode_redux},
                                    {"activemask", decode_activemask},
                                    {"elect", decode_elect}});

}  // namespace
}  // namespace vgpu
