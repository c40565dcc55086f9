// bar and barrier of a block: sync, arrive, red.
//
// A count that is given is in threads and every whole warp counts as 32; without one, the threads are counted that
// have not exited.
#include <bit>
#include <string>

#include "core/block.h"
#include "core/decode.h"
#include "core/hooks.h"

namespace vgpu {

void decode_warp_barrier(Decoder& d);     // vote.cpp
void decode_cluster_barrier(Decoder& d);  // cluster.cpp

namespace {

enum Kind : uint8_t { kPlain, kCount, kAnd, kOr };

// extra[0]: .aligned; extra[1]: a Kind; extra[2]: .arrive; extra[3]: the predicate is negated.
// Slots: number, count or none, result, predicate.

uint32_t rounded_up(uint32_t threads) { return (threads + kLanes - 1) / kLanes * kLanes; }

std::string in_use(const Barrier& b) {
  return b.first_warp == nullptr ? "" : "first to arrive: " + place(*b.first_warp, b.first_pc);
}

// The group's other lanes go on at `pc` alone.
void split_off(Warp& warp, LaneMask lanes, uint32_t pc) {
  if (lanes == 0) return;
  warp.group().lanes &= ~lanes;
  warp.groups.push_back({.pc = pc, .lanes = lanes});
}

// Lanes of `lanes` whose value is that of the first.
LaneMask same_value(const uint32_t* values, LaneMask lanes) {
  const uint32_t first = values[__builtin_ctz(lanes)];
  LaneMask same = 0;
  for (uint32_t l = 0; l < kLanes; ++l) same |= LaneMask{values[l] == first} << l;
  return same & lanes;
}

void write_result(Warp& warp, const Instruction& i, LaneMask lanes, const Barrier& b) {
  if (b.kind == kCount) {
    uint32_t* d = warp.u32(i.slot[2]);
    for_lanes(lanes, [&](uint32_t l) { d[l] = b.reduction; });
  } else {
    LaneMask* p = warp.lanes<LaneMask>(i.slot[2]);
    *p = b.reduction ? *p | lanes : *p & ~lanes;
  }
  for (uint32_t r : i.writes) {
    if (r < warp.written.size()) warp.written[r] |= lanes;
  }
}

void complete(Block& block, uint32_t number) {
  Barrier& b = block.barriers[number];
  for (auto& warp : block.warps) {
    for (Group& g : warp->groups) {
      if (g.wait != Wait::kBarrier || g.detail != number) continue;
      if (warp->checks()) warp->clocks.acquire(b.knowledge, g.lanes, warp->alive);
      if (b.kind != kPlain) write_result(*warp, warp->program->code[g.pc], g.lanes, b);
      g.wait = Wait::kNone;
      ++g.pc;
    }
  }
  b.active = false;
  b.arrived = 0;
  b.first_warp = nullptr;
  b.previous_arrivals.swap(b.arrivals);
  b.arrivals.clear();
  if (!b.knowledge.seen.empty()) b.knowledge.clear();
  progress(*block.warps.front());
}

void open(Warp& warp, const Instruction& i, Barrier& b, uint32_t expected) {
  b.active = true;
  b.expected = expected;
  b.arrived = 0;
  b.kind = static_cast<uint8_t>(i.extra[1]);
  b.reduction = b.kind == kAnd;
  b.first_pc = i.index;
  b.first_warp = &warp;
}

[[noreturn]] void misuse(Warp& warp, const Instruction& i, const std::string& what, std::string details = {}) {
  fault(warp, i, FaultKind::kBarrierMisuse, what, __builtin_ctz(warp.active), std::move(details));
}

void check_count(Warp& warp, const Instruction& i, uint32_t count) {
  const uint32_t threads = rounded_up(warp.block->threads);
  if (count == 0 || count % kLanes != 0) {
    misuse(warp, i, "a barrier's thread count must be a multiple of 32, not " + std::to_string(count));
  }
  if (count > threads) {
    misuse(warp, i,
           "a barrier for " + std::to_string(count) + " threads in a block of " + std::to_string(warp.block->threads) +
               " can never complete");
  }
}

void check_use(Warp& warp, const Instruction& i, const Barrier& b, uint32_t number, uint32_t expected) {
  const auto threads = [](uint32_t n) { return n == 0 ? "all" : std::to_string(n); };
  if (b.expected != expected) {
    misuse(warp, i,
           "barrier " + std::to_string(number) + " is in use for " + threads(b.expected) + " threads, not for " +
               threads(expected),
           in_use(b));
  }
  if (b.kind != i.extra[1]) {
    misuse(warp, i,
           "barrier " + std::to_string(number) +
               " is in use by another kind of instruction (.red and others "
               "must not be mixed)",
           in_use(b));
  }
}

// Whoever comes to the next use of a barrier must know that the use before is over; else the two may mix.
void check_reuse(Warp& warp, const Instruction& i, const Barrier& b, uint32_t number, uint32_t lane) {
  for (const Barrier::Arrival& a : b.previous_arrivals) {
    if (warp.clocks.knows(lane, a.agent, kWholeWarp, a.time)) continue;
    misuse(warp, i,
           "comes to barrier " + std::to_string(number) +
               " again with nothing that orders it after the use before, so that the two may mix",
           "warp " + std::to_string(a.agent % warp.launch->warps_per_block) + " came to that at " + place(warp, a.pc));
  }
}

void arrive(Warp& warp, const Instruction& i) {
  Block& block = *warp.block;
  const bool aligned = i.extra[0];
  const uint32_t* numbers = warp.u32(i.slot[0]);
  const uint32_t* counts = i.slot[1] == kNoSlot ? nullptr : warp.u32(i.slot[1]);
  if (aligned) {
    if (!converged(warp, i)) return;
  }
  LaneMask lanes = same_value(numbers, warp.active);
  if (counts != nullptr) lanes &= same_value(counts, warp.active);
  if (lanes != warp.active) {
    if (aligned) misuse(warp, i, "the lanes of a warp name different barriers or counts");
    split_off(warp, warp.active & ~lanes, i.index);
    warp.active = lanes;
  }

  const auto first = static_cast<uint32_t>(__builtin_ctz(lanes));
  const uint32_t number = numbers[first], expected = counts == nullptr ? 0 : counts[first];
  if (number >= block.barriers.size()) misuse(warp, i, "there is no barrier " + std::to_string(number));
  if (counts != nullptr) check_count(warp, i, expected);
  Barrier& b = block.barriers[number];
  if (b.active) {
    check_use(warp, i, b, number, expected);
  } else {
    open(warp, i, b, expected);
  }
  b.arrived += expected != 0 && lanes == warp.alive ? kLanes : static_cast<uint32_t>(std::popcount(lanes));
  if (expected != 0 && b.arrived > expected) {
    misuse(warp, i,
           "more threads arrive at barrier " + std::to_string(number) + " than the " + std::to_string(expected) +
               " that it is for",
           in_use(b));
  }
  if (b.kind != kPlain) {
    const LaneMask yes = (warp.predicate(i.slot[3]) ^ (i.extra[3] ? kAllLanes : 0)) & lanes;
    if (b.kind == kCount) b.reduction += static_cast<uint32_t>(std::popcount(yes));
    if (b.kind == kAnd) b.reduction &= yes == lanes;
    if (b.kind == kOr) b.reduction |= yes != 0;
  }
  if (warp.checks()) {
    check_reuse(warp, i, b, number, first);
    b.arrivals.push_back({warp.clocks.self, warp.clocks.now, i.index});
    warp.clocks.release_into(b.knowledge, lanes, warp.alive);
  }
  if (Counters* c = counters(warp, i)) ++c->barriers;

  if (i.extra[2]) {
    advance(warp);
  } else {
    Group& g = warp.group();
    g.wait = Wait::kBarrier;
    g.detail = number;
  }
  if (b.arrived >= (expected != 0 ? expected : block.threads - block.exited)) complete(block, number);
}

void decode_block_barrier(Decoder& d, bool aligned) {
  d.take("cta");
  const std::string what = d.take_any({"sync", "arrive", "red"});
  if (what.empty()) d.unknown("wants .sync, .arrive or .red");
  const bool has_aligned = d.take("aligned");
  d.out.extra[0] = aligned || has_aligned;
  d.out.extra[2] = what == "arrive";
  const TypeInfo u32 = type_info("u32");
  size_t k = 0, after_count = 2;
  if (what == "red") {
    const std::string operation = d.take_any({"popc", "and", "or"});
    if (!d.take(operation == "popc" ? "u32" : "pred")) d.unknown("wants .popc.u32, .and.pred or .or.pred");
    d.out.extra[1] = operation == "popc" ? kCount : operation == "and" ? kAnd : kOr;
    d.out.slot[2] = operation == "popc" ? d.destination(0, u32) : d.predicate_destination(d.operand(0));
    bool negated = false;
    d.out.slot[3] = d.predicate_source(d.operand(d.operands() - 1), &negated);
    d.out.extra[3] = negated;
    k = 1;
    after_count = 4;
  }
  d.out.slot[0] = d.source(k, u32);
  if (d.operands() == after_count) d.out.slot[1] = d.source(k + 1, u32);
  if (d.operands() > after_count) d.unknown("has too many operands");
  if (what == "arrive" && d.out.slot[1] == kNoSlot) d.unknown(".arrive wants a thread count");
  d.out.execute = arrive;
  d.out.control = true;
  d.out.kind = InstructionClass::kCollective;
}

void decode_bar(Decoder& d) {
  if (d.take("warp")) return decode_warp_barrier(d);
  decode_block_barrier(d, true);
}

void decode_barrier(Decoder& d) {
  if (d.take("cluster")) return decode_cluster_barrier(d);
  decode_block_barrier(d, false);
}

const RegisterDecoders kRegistered({{"bar", decode_bar}, {"barrier", decode_barrier}});

}  // namespace

void recheck_barriers(Block& block) {
  // Lanes that waited for the exited ones to converge look again.
  for (auto& warp : block.warps) {
    for (Group& g : warp->groups) {
      if (g.wait == Wait::kConverge) g.wait = Wait::kNone;
    }
  }
  for (uint32_t number = 0; number < block.barriers.size(); ++number) {
    const Barrier& b = block.barriers[number];
    if (b.active && b.expected == 0 && b.arrived >= block.threads - block.exited) complete(block, number);
  }
}

}  // namespace vgpu
