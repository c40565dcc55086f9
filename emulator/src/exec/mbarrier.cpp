// mbarrier.*: phases that complete when the wanted arrivals and the expected bytes are there.
//
// The object's 64-bit word in shared memory says nothing; the state is kept in Block::mbarriers. A state token, as
// arrive returns it, has the phase and the pending count before the arrival, and where the object is.
#include "exec/mbarrier.h"

#include <bit>
#include <cstring>

#include "exec/async.h"

namespace vgpu {
namespace {

constexpr uint64_t kTokenMark = 0xB5;
constexpr uint32_t kPendingBits = 20, kOffsetBits = 15, kPhaseBits = 21;
static_assert(8 + kPendingBits + kOffsetBits + kPhaseBits == 64);

// extra[2]: flags of arrivals; extra[3]: the address may be another block's; extra[4]: relaxed.
constexpr uint32_t kNoComplete = 1, kExpectTx = 2, kDrop = 4;

uint64_t make_token(const Mbarrier& barrier) {
  const auto pending = static_cast<uint64_t>(barrier.pending);
  const uint64_t phase = barrier.phase & ((1u << kPhaseBits) - 1);
  return kTokenMark << 56 | pending << (kOffsetBits + kPhaseBits) | uint64_t{barrier.offset / 8} << kPhaseBits | phase;
}

[[noreturn]] void misuse(Warp& warp, const Instruction& i, const std::string& what, uint32_t lane,
                         const Mbarrier* barrier = nullptr) {
  std::string details;
  if (barrier != nullptr) {
    details = "initialised at " + place(warp, barrier->init_pc) + ", phase " + std::to_string(barrier->phase) + ", " +
              std::to_string(barrier->pending) + " of " + std::to_string(barrier->count) + " arrivals and " +
              std::to_string(barrier->transactions) + " bytes pending";
    fault_at(warp, i, FaultKind::kMbarrierMisuse, what, static_cast<int>(lane), barrier->offset, details);
  }
  fault(warp, i, FaultKind::kMbarrierMisuse, what, static_cast<int>(lane));
}

void check_token(Warp& warp, const Instruction& i, const Mbarrier& barrier, uint64_t token, uint32_t lane) {
  if (token >> 56 != kTokenMark) misuse(warp, i, "this is not a state that an arrive has returned", lane, &barrier);
  if ((token >> kPhaseBits & ((1u << kOffsetBits) - 1)) != barrier.offset / 8) {
    misuse(warp, i, "this state was returned by another mbarrier", lane, &barrier);
  }
}

// Is the phase that the token names complete?
bool token_phase_done(Warp& warp, const Instruction& i, const Mbarrier& barrier, uint64_t token, uint32_t lane) {
  check_token(warp, i, barrier, token, lane);
  constexpr uint64_t kMask = (1u << kPhaseBits) - 1;
  const uint64_t behind = (barrier.phase - token) & kMask;
  if (behind > 1) {
    misuse(warp, i,
           "the state is of phase " + std::to_string(token & kMask) +
               "; only the current and the preceding phase can be tested",
           lane, &barrier);
  }
  return behind == 1;
}

// The initialisation must come before this use in every order the memory model allows.
void check_initialised_before(Warp& warp, const Instruction& i, const Mbarrier& barrier, uint32_t lane) {
  if (warp.clocks.all.seen[barrier.init_agent] >= barrier.init_time) return;
  if (barrier.init_agent == warp.clocks.self && barrier.init_lane == lane) return;
  if (warp.clocks.knows(lane, barrier.init_agent, barrier.init_lane, barrier.init_time)) return;
  if (barrier.init_fenced && warp.block->cluster->cluster_phase > barrier.init_cluster_phase) return;
  fault_at(warp, i, FaultKind::kSharedRace, "the mbarrier's initialisation is not ordered before this use",
           static_cast<int>(lane), barrier.offset, "initialised at " + place(warp, barrier.init_pc));
}

void check_arrivals(Warp& warp, const Instruction& i, const Mbarrier& barrier, int64_t count, uint32_t lane) {
  if (count < 1 || count > kMaxMbarrierCount) {
    fault(warp, i, FaultKind::kBadArgument, "the count is " + std::to_string(count) + ", want 1 to 1048575",
          static_cast<int>(lane));
  }
  if (count > barrier.pending) {
    misuse(warp, i,
           std::to_string(count) + " arrivals, but the phase wants only " + std::to_string(barrier.pending) + " more",
           lane, &barrier);
  }
}

void reserve_knowledge(Cluster& cluster, Mbarrier& barrier) {
  if (barrier.arriving.seen.size() == cluster.agents) return;
  barrier.arriving = Knowledge(cluster.agents);
  barrier.completed = Knowledge(cluster.agents);
}

// Calls body(lanes, place) for each set of active lanes that name the same address.
template <class F>
void for_mbarriers(Warp& warp, const Instruction& i, F&& body) {
  for (LaneMask rest = warp.active; rest != 0;) {
    const auto first = static_cast<uint32_t>(std::countr_zero(rest));
    const uint64_t address = address_of(warp, i, 0, first);
    LaneMask same = 0;
    for_lanes(rest, [&](uint32_t lane) { same |= LaneMask{address_of(warp, i, 0, lane) == address} << lane; });
    const MbarrierPlace where = mbarrier_of(warp, i, 0, i.extra[3], first);
    if (warp.checks()) {
      for_lanes(same & ~(1u << first), [&](uint32_t lane) { check_initialised_before(warp, i, *where.barrier, lane); });
    }
    body(same, where);
    rest &= ~same;
  }
}

void execute_init(Warp& warp, const Instruction& i) {
  for_lanes(warp.active, [&](uint32_t lane) {
    const SharedPlace where = async_place(warp, i, shared_address_of(warp, i, 0, lane), 8, 8, false, lane);
    const uint32_t count = warp.u32(i.slot[1])[lane];
    if (count < 1 || count > kMaxMbarrierCount) {
      fault(warp, i, FaultKind::kMbarrierMisuse,
            "an mbarrier for " + std::to_string(count) + " arrivals, want 1 to 1048575", static_cast<int>(lane));
    }
    Block& block = *where.block;
    Cluster& cluster = *block.cluster;
    if (const Mbarrier* live = block.find_mbarrier(where.offset)) {
      misuse(warp, i, "the mbarrier is initialised again while it is live; mbarrier.inval ends its life", lane, live);
    }
    if (warp.checks()) {
      block.shadow.write(warp, i, block, lane, where.offset, 8);
      block.shadow.mark_known(where.offset, 8);
    }
    Agent agent = 0;
    std::unique_ptr<Mbarrier>* home = nullptr;
    for (auto& old : block.mbarriers) {
      if (old->offset == where.offset) home = &old;
    }
    if (home == nullptr) {
      home = &block.mbarriers.emplace_back();
    } else {
      agent = (*home)->agent;
    }
    *home = std::make_unique<Mbarrier>();
    Mbarrier* barrier = home->get();
    barrier->offset = where.offset;
    barrier->count = count;
    barrier->pending = count;
    barrier->init_pc = i.index;
    barrier->init_agent = warp.clocks.self;
    barrier->init_lane = lane;
    barrier->init_time = warp.clocks.now;
    barrier->agent = agent;
    if (agent == 0) {
      const auto first = static_cast<Agent>(cluster.agents - kAsyncAgents);
      barrier->agent = first + cluster.next_async_agent;
      if (cluster.next_async_agent + 1 < kAsyncAgents) ++cluster.next_async_agent;
    }
    barrier->word = 0x9D5A'0000'0000'0000ull | uint64_t{count} << 24 | where.offset;
    std::memcpy(block.shared.data() + where.offset, &barrier->word, 8);
    if (warp.checks()) reserve_knowledge(cluster, *barrier);
  });
}

void execute_inval(Warp& warp, const Instruction& i) {
  for_mbarriers(warp, i, [&](LaneMask lanes, MbarrierPlace where) {
    const auto lane = static_cast<uint32_t>(std::countr_zero(lanes));
    if (std::popcount(lanes) > 1) misuse(warp, i, "several lanes end the same mbarrier's life", lane, where.barrier);
    if (where.barrier->in_flight != 0) {
      misuse(warp, i, "the mbarrier's life ends while asynchronous operations will still complete on it", lane,
             where.barrier);
    }
    where.barrier->live = false;
    if (warp.checks()) where.block->shadow.write(warp, i, *where.block, lane, where.barrier->offset, 8);
  });
}

void execute_expect(Warp& warp, const Instruction& i) {
  for_mbarriers(warp, i, [&](LaneMask lanes, MbarrierPlace where) {
    for_lanes(lanes, [&](uint32_t lane) {
      const int64_t bytes = warp.u32(i.slot[1])[lane];
      mbarrier_expect_bytes(warp, i, *where.barrier, i.immediate * bytes, lane);
      mbarrier_check_phase(*where.block->cluster, *where.barrier);
    });
  });
}

void arrive_lane(Warp& warp, const Instruction& i, MbarrierPlace where, uint32_t lane) {
  Mbarrier& barrier = *where.barrier;
  const uint32_t flags = i.extra[2];
  const uint32_t operand = i.slot[1] == kNoSlot ? 1 : warp.u32(i.slot[1])[lane];
  const uint32_t count = flags & kExpectTx ? 1 : operand;
  if (flags & kExpectTx) mbarrier_expect_bytes(warp, i, barrier, operand, lane);
  check_arrivals(warp, i, barrier, count, lane);
  if ((flags & kNoComplete) && barrier.pending == count) {
    misuse(warp, i, "an arrive.noComplete would complete the phase", lane, &barrier);
  }
  if (i.slot[2] != kNoSlot) warp.u64(i.slot[2])[lane] = make_token(barrier);
  if (flags & kDrop) barrier.count -= count;
  mbarrier_arrive(warp, i, barrier, count, lane);
}

void publish(Warp& warp, const Instruction& i, Mbarrier& barrier, LaneMask lanes) {
  if (!warp.checks()) return;
  if (!i.extra[4]) {
    warp.clocks.release_into(barrier.arriving, lanes, warp.alive);
  } else if (warp.has_fence) {
    barrier.arriving.join(warp.fence);
  }
}

void execute_arrive(Warp& warp, const Instruction& i) {
  for_mbarriers(warp, i, [&](LaneMask lanes, MbarrierPlace where) {
    int64_t total = 0;
    for_lanes(lanes, [&](uint32_t lane) {
      total += i.slot[1] == kNoSlot || (i.extra[2] & kExpectTx) ? 1 : warp.u32(i.slot[1])[lane];
    });
    // One phase takes them all: what they know is published at once. Otherwise each publishes for the phase it is in.
    if (total <= where.barrier->pending) {
      publish(warp, i, *where.barrier, lanes);
      for_lanes(lanes, [&](uint32_t lane) { arrive_lane(warp, i, where, lane); });
    } else {
      for_lanes(lanes, [&](uint32_t lane) {
        publish(warp, i, *where.barrier, 1u << lane);
        arrive_lane(warp, i, where, lane);
      });
    }
  });
}

template <bool kParity>
void execute_wait(Warp& warp, const Instruction& i) {
  LaneMask done = 0;
  for_mbarriers(warp, i, [&](LaneMask lanes, MbarrierPlace where) {
    Mbarrier& barrier = *where.barrier;
    LaneMask ready = 0;
    for_lanes(lanes, [&](uint32_t lane) {
      bool yes;
      if constexpr (kParity) {
        // Bit 0 alone counts: Triton passes a bit that it extended by its sign.
        const uint32_t parity = warp.u32(i.slot[1])[lane] & 1;
        yes = (barrier.phase & 1) != parity;
      } else {
        yes = token_phase_done(warp, i, barrier, warp.u64(i.slot[1])[lane], lane);
      }
      ready |= LaneMask{yes} << lane;
    });
    if (ready == 0) return;
    barrier.observed_phases = barrier.phase;
    if (warp.checks() && !i.extra[4]) warp.clocks.acquire(barrier.completed, ready, warp.alive);
    done |= ready;
  });
  warp.set_predicate(i.slot[2], done);
  if (done != warp.active) warp.group().yielded = true;
  advance(warp);
}

void execute_pending_count(Warp& warp, const Instruction& i) {
  for_lanes(warp.active, [&](uint32_t lane) {
    const uint64_t token = warp.u64(i.slot[1])[lane];
    if (token >> 56 != kTokenMark) misuse(warp, i, "this is not a state that an arrive has returned", lane);
    warp.u32(i.slot[2])[lane] = token >> (kOffsetBits + kPhaseBits) & ((1u << kPendingBits) - 1);
  });
}

// .sem and .scope; returns whether the access is relaxed.
bool take_semantics(Decoder& d, std::string_view other) {
  const std::string semantics = d.take_any({"relaxed", other});
  const std::string scope = d.take_any({"cta", "cluster"});
  if (semantics.empty() && !scope.empty()) d.unknown("wants ." + std::string(other) + " or .relaxed with a scope");
  if (!semantics.empty() && scope.empty()) d.unknown("wants a scope, .cta or .cluster");
  return semantics == "relaxed";
}

void address(Decoder& d, const ptx::Operand& operand, bool may_be_remote) {
  const MbarrierSpace space = take_mbarrier_space(d);
  d.out.extra[3] = may_be_remote && space.cluster;
  set_address(d, 0, operand, space.space);
}

void decode_arrive(Decoder& d, bool drop) {
  uint32_t flags = drop ? kDrop : 0;
  if (d.take("expect_tx")) flags |= kExpectTx;
  if (d.take("noComplete")) flags |= kNoComplete;
  if (flags & kNoComplete) {
    d.take("release");
    d.take("cta");
  } else {
    d.out.extra[4] = take_semantics(d, "release");
  }
  const bool has_state = d.operand(0).kind != ptx::OperandKind::kAddress;
  if (has_state && d.operand(0).kind != ptx::OperandKind::kSink) d.out.slot[2] = d.destination(0, type_info("b64"));
  const size_t k = has_state ? 1 : 0;
  address(d, d.operand(k), true);
  if (d.operands() > k + 2) d.unknown("has too many operands");
  if (d.operands() == k + 2) {
    d.out.slot[1] = d.source(k + 1, type_info("u32"));
  } else if (flags & (kExpectTx | kNoComplete)) {
    d.unknown("wants a count");
  }
  d.out.extra[2] = flags;
  d.out.execute = execute_arrive;
}

void decode_wait(Decoder& d, bool try_wait) {
  const bool parity = d.take("parity");
  d.out.extra[4] = take_semantics(d, "acquire");
  d.out.slot[2] = d.predicate_destination(d.operand(0));
  address(d, d.operand(1), false);
  d.out.slot[1] = d.source(2, type_info(parity ? "u32" : "b64"));
  if (d.operands() == 4 && try_wait) d.source(3, type_info("u32"));
  if (d.operands() > (try_wait ? 4u : 3u)) d.unknown("has too many operands");
  d.out.execute = parity ? execute_wait<true> : execute_wait<false>;
  d.out.control = true;
}

void decode_mbarrier(Decoder& d) {
  d.out.kind = InstructionClass::kAsync;
  const std::string what = d.statement.modifiers.empty() ? "" : d.statement.modifiers.front();
  d.take(what);
  if (!d.take("b64")) d.unknown("wants .b64");
  if (what == "init") {
    address(d, d.operand(0), false);
    d.out.slot[1] = d.source(1, type_info("u32"));
    d.out.execute = execute_init;
  } else if (what == "inval") {
    address(d, d.operand(0), false);
    d.out.execute = execute_inval;
  } else if (what == "expect_tx" || what == "complete_tx") {
    if (!d.take("relaxed") && (d.take("cta") || d.take("cluster"))) d.unknown("wants .relaxed with a scope");
    d.take_any({"cta", "cluster"});
    address(d, d.operand(0), true);
    d.out.slot[1] = d.source(1, type_info("u32"));
    d.out.immediate = what == "expect_tx" ? 1 : -1;
    d.out.execute = execute_expect;
  } else if (what == "arrive" || what == "arrive_drop") {
    decode_arrive(d, what == "arrive_drop");
  } else if (what == "test_wait" || what == "try_wait") {
    decode_wait(d, what == "try_wait");
  } else if (what == "pending_count") {
    d.out.slot[2] = d.destination(0, type_info("u32"));
    d.out.slot[1] = d.source(1, type_info("b64"));
    d.out.execute = execute_pending_count;
  } else {
    d.unknown("the emulator does not know this operation on an mbarrier");
  }
}

const RegisterDecoders kRegistered({{"mbarrier", decode_mbarrier}});

}  // namespace

Mbarrier* Block::find_mbarrier(uint32_t offset) {
  for (auto& barrier : mbarriers) {
    if (barrier->offset == offset && barrier->live) return barrier.get();
  }
  return nullptr;
}

Mbarrier& mbarrier_at(Warp& warp, const Instruction& i, Block& block, uint32_t offset, uint32_t lane) {
  Mbarrier* barrier = block.find_mbarrier(offset);
  if (barrier == nullptr) {
    fault_at(warp, i, FaultKind::kMbarrierMisuse, "there is no initialised mbarrier at this address",
             static_cast<int>(lane), offset);
  }
  uint64_t word;
  std::memcpy(&word, block.shared.data() + offset, 8);
  if (word != barrier->word) misuse(warp, i, "the mbarrier was overwritten by something else", lane, barrier);
  if (warp.checks()) check_initialised_before(warp, i, *barrier, lane);
  return *barrier;
}

MbarrierPlace mbarrier_of(Warp& warp, const Instruction& i, uint32_t k, bool cluster, uint32_t lane) {
  const SharedPlace where = async_place(warp, i, shared_address_of(warp, i, k, lane), 8, 8, cluster, lane);
  return {&mbarrier_at(warp, i, *where.block, where.offset, lane), where.block};
}

MbarrierSpace take_mbarrier_space(Decoder& d) {
  if (d.take("shared::cluster")) return {ptx::Space::kShared, true};
  if (d.take("shared::cta") || d.take("shared")) return {ptx::Space::kShared, false};
  return {ptx::Space::kNone, true};
}

void mbarrier_arrive(Warp& warp, const Instruction& i, Mbarrier& barrier, uint32_t count, uint32_t lane) {
  check_arrivals(warp, i, barrier, count, lane);
  barrier.pending -= count;
  mbarrier_check_phase(*warp.block->cluster, barrier);
}

void mbarrier_expect_bytes(Warp& warp, const Instruction& i, Mbarrier& barrier, int64_t bytes, uint32_t lane) {
  const int64_t sum = barrier.transactions + bytes;
  if (std::abs(bytes) > kMaxMbarrierCount || std::abs(sum) > kMaxMbarrierCount) {
    misuse(warp, i, "the count of pending bytes would be " + std::to_string(sum) + ", want −1048575 to 1048575", lane,
           &barrier);
  }
  barrier.transactions = sum;
}

void mbarrier_complete_bytes(Cluster& cluster, Mbarrier& barrier, int64_t bytes) {
  barrier.transactions -= bytes;
  barrier.phase_has_bytes |= bytes > 0;
  mbarrier_check_phase(cluster, barrier);
}

void mbarrier_check_phase(Cluster& cluster, Mbarrier& barrier) {
  if (barrier.pending != 0 || barrier.transactions != 0) return;
  ++barrier.phase;
  barrier.pending = barrier.count;
  if (cluster.launch->options.checks) {
    reserve_knowledge(cluster, barrier);
    barrier.completed.join(barrier.arriving);
    barrier.arriving.clear();
    if (barrier.phase_has_bytes) {
      Time& time = async_time(cluster, barrier.agent);
      if (time < kMaxTime) ++time;
      barrier.delivered_phases = barrier.phase;
    }
  }
  barrier.phase_has_bytes = false;
  ++cluster.version;
  cluster.instructions_since_progress = 0;
}

}  // namespace vgpu
