// cp.async (not bulk): copies of 4, 8 or 16 bytes per lane from global to shared memory, their groups, and the arrivals
// that wait for them.
//
// The destination is in flight, for the checks, until the issuing lanes wait, however early the bytes arrive.
#include <algorithm>
#include <bit>
#include <cstring>

#include "exec/async.h"
#include "exec/mbarrier.h"

namespace vgpu {
namespace {

// extra[2]: bytes per lane; extra[3]: what slot[2] holds.
constexpr uint32_t kSourceBytes = 1, kIgnoreSource = 2, kKeepSource = 3;

void copy_lane(Block& block, const PendingCopy& copy, uint32_t lane) {
  std::byte* to = block.shared.data() + copy.to[lane];
  const uint32_t valid = copy.valid[lane];
  if (valid == copy.bytes && valid == 16) {
    std::memcpy(to, copy.from[lane], 16);
    return;
  }
  if (valid != 0) std::memcpy(to, copy.from[lane], valid);
  std::memset(to + valid, 0, copy.bytes - valid);
}

void deliver_lanes(Warp& warp, PendingCopy& copy, LaneMask lanes) {
  for_lanes(lanes & ~copy.arrived, [&](uint32_t lane) { copy_lane(*warp.block, copy, lane); });
  copy.arrived |= lanes;
}

// The lanes waited: their bytes are there, written by them as of now.
void finish(Warp& warp, PendingCopy& copy, LaneMask lanes) {
  lanes &= copy.lanes;
  deliver_lanes(warp, copy, lanes);
  copy.lanes &= ~lanes;
  if (!warp.checks()) return;
  SharedShadow& shadow = warp.block->shadow;
  for_lanes(lanes, [&](uint32_t lane) {
    shadow.finish_write(warp.clocks.self, lane, warp.clocks.now, copy.to[lane], copy.bytes);
  });
}

void remove_finished(std::vector<PendingCopy>& copies) {
  std::erase_if(copies, [](const PendingCopy& copy) { return copy.lanes == 0; });
}

// Finds the source bytes of the lanes that read `bytes` each.
void resolve_sources(Warp& warp, const Instruction& i, PendingCopy& copy, LaneMask lanes, uint32_t bytes) {
  Access access;
  access.space = ptx::Space::kGlobal;
  access.touch = Touch::kAsyncRead;
  access.bytes = bytes;
  access.lanes = lanes;
  load_addresses(warp, i.slot[1], i.extra[5] >> 2 & 1, static_cast<int32_t>(i.extra[1]), access);
  resolve(warp, i, access);
  for_lanes(lanes, [&](uint32_t lane) { copy.from[lane] = access.host[lane]; });
}

void find_destinations(Warp& warp, const Instruction& i, PendingCopy& copy) {
  const size_t end = warp.block->shared.size();
  const bool wide = i.extra[5] & 1;
  for_lanes(copy.lanes, [&](uint32_t lane) {
    const uint32_t base = wide ? static_cast<uint32_t>(warp.u64(i.slot[0])[lane]) : warp.u32(i.slot[0])[lane];
    uint32_t address = base + i.extra[0];
    if (address % copy.bytes != 0 || address < kSharedBase || address + size_t{copy.bytes} > end) {
      address = async_place(warp, i, address, copy.bytes, copy.bytes, false, lane).offset;
    }
    copy.to[lane] = address;
  });
}

void find_sources(Warp& warp, const Instruction& i, PendingCopy& copy) {
  LaneMask whole = copy.lanes;
  if (i.extra[3] == kSourceBytes) {
    const uint32_t* sizes = warp.u32(i.slot[2]);
    for_lanes(copy.lanes, [&](uint32_t lane) {
      if (sizes[lane] > copy.bytes) {
        fault(warp, i, FaultKind::kBadArgument,
              "the source has " + std::to_string(sizes[lane]) + " bytes, more than the copy's " +
                  std::to_string(copy.bytes),
              static_cast<int>(lane));
      }
      copy.valid[lane] = static_cast<uint8_t>(sizes[lane]);
      if (sizes[lane] != copy.bytes) whole &= ~(1u << lane);
    });
  } else if (i.extra[3] != 0) {
    const LaneMask set = warp.predicate(i.slot[2]);
    whole &= i.extra[3] == kIgnoreSource ? ~set : set;
  }
  for_lanes(whole, [&](uint32_t lane) { copy.valid[lane] = copy.bytes; });
  if (whole != 0) resolve_sources(warp, i, copy, whole, copy.bytes);
  for (LaneMask rest = copy.lanes & ~whole; rest != 0;) {
    const uint8_t bytes = copy.valid[std::countr_zero(rest)];
    LaneMask same = 0;
    for_lanes(rest, [&](uint32_t lane) { same |= LaneMask{copy.valid[lane] == bytes} << lane; });
    // A source that is read in part must be aligned like a whole one.
    for_lanes(bytes == 0 ? 0 : same, [&](uint32_t lane) {
      const uint64_t address = address_of(warp, i, 1, lane);
      if (address % copy.bytes != 0) fault_misaligned(warp, i, address, copy.bytes, lane, "the source");
    });
    if (bytes == 1 || bytes == 2 || bytes == 4 || bytes == 8) {
      resolve_sources(warp, i, copy, same, bytes);
    } else if (bytes != 0) {
      for_lanes(same, [&](uint32_t lane) {
        copy.from[lane] = resolve_global(warp, i, address_of(warp, i, 1, lane), bytes, Touch::kAsyncRead, lane);
      });
    }
    rest &= ~same;
  }
}

// The destinations of all lanes are one range without gaps, in whatever order.
bool is_one_range(const PendingCopy& copy, uint32_t* begin) {
  if (copy.lanes != kAllLanes) return false;
  uint32_t low = copy.to[0];
  for (uint32_t lane = 1; lane < kLanes; ++lane) low = std::min(low, copy.to[lane]);
  LaneMask places = 0;
  const auto shift = static_cast<uint32_t>(std::countr_zero(uint32_t{copy.bytes}));
  for (uint32_t lane = 0; lane < kLanes; ++lane) {
    const uint32_t place = (copy.to[lane] - low) >> shift;
    if (place < kLanes) places |= 1u << place;
  }
  *begin = low;
  return places == kAllLanes;
}

void begin_writes(Warp& warp, const Instruction& i, const PendingCopy& copy) {
  Block& block = *warp.block;
  uint32_t begin = 0;
  if (is_one_range(copy, &begin) && warp.clocks.lanes_with_extra == 0) {
    try {
      block.shadow.begin_write(warp, i, block, kWholeWarp, begin, kLanes * copy.bytes);
      return;
    } catch (const Fault&) {
      // A lane may overwrite what it alone knows of; and a report is to name the lane.
    }
  }
  for_lanes(copy.lanes,
            [&](uint32_t lane) { block.shadow.begin_write(warp, i, block, lane, copy.to[lane], copy.bytes); });
}

void execute_copy(Warp& warp, const Instruction& i) {
  PendingCopy& copy = warp.open_copies.copies.emplace_back();
  copy.lanes = warp.active;
  copy.number = warp.next_copy++;
  copy.pc = i.index;
  copy.bytes = static_cast<uint8_t>(i.extra[2]);
  find_destinations(warp, i, copy);
  find_sources(warp, i, copy);
  Access destinations;
  destinations.bytes = copy.bytes;
  destinations.lanes = copy.lanes;
  for_lanes(copy.lanes, [&](uint32_t lane) { destinations.address[lane] = copy.to[lane]; });
  count_shared_access(warp, i, destinations);
  if (warp.checks()) begin_writes(warp, i, copy);
  if (warp.launch->options.completion == Completion::kEager) deliver_lanes(warp, copy, copy.lanes);
}

// Storage of finished groups, used again.
thread_local std::vector<std::vector<PendingCopy>> spare;

void commit(Warp& warp, LaneMask lanes) {
  CopyGroup group;
  group.lanes = lanes;
  if (!spare.empty()) {
    group.copies = std::move(spare.back());
    spare.pop_back();
  }
  std::vector<PendingCopy>& open = warp.open_copies.copies;
  LaneMask others = 0;
  for (const PendingCopy& copy : open) others |= copy.lanes & ~lanes;
  if (others == 0) {
    std::swap(group.copies, open);
    open.clear();
  } else {
    for (PendingCopy& copy : open) {
      if ((copy.lanes & lanes) == 0) continue;
      group.copies.push_back(copy);
      group.copies.back().lanes &= lanes;
      copy.lanes &= ~lanes;
    }
    remove_finished(open);
  }
  warp.copy_groups.push_back(std::move(group));
}

// Finishes what is older than the newest `keep` groups of each lane.
void wait(Warp& warp, LaneMask lanes, uint32_t keep) {
  LaneMask older = keep == 0 ? lanes : 0;
  std::array<uint32_t, kLanes> newer{};
  bool emptied = false;
  for (auto group = warp.copy_groups.rbegin(); group != warp.copy_groups.rend(); ++group) {
    const LaneMask here = group->lanes & lanes;
    if (const LaneMask done = here & older) {
      for (PendingCopy& copy : group->copies) finish(warp, copy, done);
      group->lanes &= ~done;
      emptied |= group->lanes == 0;
    }
    for_lanes(here & ~older, [&](uint32_t lane) { older |= LaneMask{++newer[lane] == keep} << lane; });
  }
  if (!emptied) return;
  std::erase_if(warp.copy_groups, [](CopyGroup& group) {
    if (group.lanes != 0) return false;
    group.copies.clear();
    if (spare.size() < 64) spare.push_back(std::move(group.copies));
    return true;
  });
}

void execute_commit(Warp& warp, const Instruction&) { commit(warp, warp.active); }
void execute_wait_group(Warp& warp, const Instruction& i) {
  wait(warp, warp.active, static_cast<uint32_t>(i.immediate));
}
void execute_wait_all(Warp& warp, const Instruction&) {
  for (PendingCopy& copy : warp.open_copies.copies) finish(warp, copy, warp.active);
  remove_finished(warp.open_copies.copies);
  wait(warp, warp.active, 0);
}

// The arrival happens once the lanes' copies up to now are there; waiting for it is waiting for them.
void execute_arrive(Warp& warp, const Instruction& i) {
  for (LaneMask rest = warp.active; rest != 0;) {
    const auto first = static_cast<uint32_t>(std::countr_zero(rest));
    const uint64_t address = address_of(warp, i, 0, first);
    LaneMask same = 0;
    for_lanes(rest, [&](uint32_t lane) { same |= LaneMask{address_of(warp, i, 0, lane) == address} << lane; });
    rest &= ~same;

    Mbarrier& barrier = *mbarrier_of(warp, i, 0, false, first).barrier;
    const auto count = static_cast<uint32_t>(std::popcount(same));
    if (i.extra[2]) {
      if (barrier.pending + count > kMaxMbarrierCount) {
        fault(warp, i, FaultKind::kMbarrierMisuse, "the pending count would exceed 1048575", static_cast<int>(first));
      }
      barrier.pending += count;
    }
    ++barrier.in_flight;
    AsyncOperation& operation = add_async(warp, i, first, "cp.async.mbarrier.arrive");
    operation.complete = [&warp, &i, &barrier, same, count, first, before = warp.next_copy] {
      finish_copies(warp, same, before);
      if (warp.checks()) {
        if ((warp.alive & ~same) == 0) {
          barrier.arriving.seen[warp.clocks.self] = warp.clocks.now;
        } else {
          barrier.arriving.partial.push_back({warp.clocks.self, same, warp.clocks.now});
        }
        // What the lanes do from now on is not part of what was published.
        if (warp.clocks.now < kMaxTime) ++warp.clocks.now;
      }
      --barrier.in_flight;
      mbarrier_arrive(warp, i, barrier, count, first);
    };
    submit_async(warp, operation);
  }
}

void decode_copy(Decoder& d, bool bypass) {
  if (!d.take("shared") && !d.take("shared::cta")) d.unknown("wants .shared as the destination");
  if (!d.take("global")) d.unknown("wants .global as the source");
  const size_t operands = take_cache_hint(d);
  d.take_any({"L2::64B", "L2::128B", "L2::256B"});
  set_address(d, 0, d.operand(0), ptx::Space::kShared);
  set_address(d, 1, d.operand(1), ptx::Space::kGlobal);
  const ptx::Operand& size = d.operand(2);
  const uint64_t bytes = size.kind == ptx::OperandKind::kImmediate ? size.bits : 0;
  if (bytes != 16 && (bypass || (bytes != 4 && bytes != 8))) {
    d.unknown(bypass ? "copies 16 bytes with .cg" : "copies 4, 8 or 16 bytes");
  }
  d.out.extra[2] = static_cast<uint32_t>(bytes);
  if (operands > 4) d.unknown("has too many operands");
  if (operands == 4) {
    const ptx::Operand& source = d.operand(3);
    if (d.register_bits(source) == 1) {
      bool negated = false;
      d.out.slot[2] = d.predicate_source(source, &negated);
      d.out.extra[3] = negated ? kKeepSource : kIgnoreSource;
    } else {
      d.out.slot[2] = d.source(source, type_info("u32"));
      d.out.extra[3] = kSourceBytes;
    }
  }
  d.note_access(ptx::Space::kShared, static_cast<uint32_t>(bytes));
  d.note_access(ptx::Space::kGlobal, static_cast<uint32_t>(bytes));
  d.out.execute = execute_copy;
}

void decode_arrive(Decoder& d) {
  if (!d.take("arrive") || !d.take("b64")) d.unknown("wants cp.async.mbarrier.arrive.b64");
  d.out.extra[2] = !d.take("noinc");
  const MbarrierSpace space = take_mbarrier_space(d);
  set_address(d, 0, d.operand(0), space.space);
  d.out.execute = execute_arrive;
}

void decode_cp_async(Decoder& d) {
  d.out.kind = InstructionClass::kAsync;
  d.take("async");
  if (d.take("bulk")) return decode_bulk(d);
  const std::string what = d.take_any({"ca", "cg", "commit_group", "wait_group", "wait_all", "mbarrier"});
  if (what == "ca" || what == "cg") {
    decode_copy(d, what == "cg");
  } else if (what == "commit_group") {
    d.out.execute = execute_commit;
  } else if (what == "wait_group") {
    if (d.operand(0).kind != ptx::OperandKind::kImmediate) d.unknown("wants a constant");
    d.out.immediate = static_cast<int64_t>(d.operand(0).bits);
    d.out.execute = execute_wait_group;
  } else if (what == "wait_all") {
    d.out.execute = execute_wait_all;
  } else if (what == "mbarrier") {
    decode_arrive(d);
  } else {
    d.unknown("the emulator does not know this asynchronous copy");
  }
}

const RegisterDecoders kRegistered({{"cp.async", decode_cp_async}});

}  // namespace

void finish_copies(Warp& warp, LaneMask lanes, uint32_t before) {
  const auto finish_in = [&](std::vector<PendingCopy>& copies) {
    for (PendingCopy& copy : copies) {
      if (static_cast<int32_t>(copy.number - before) < 0) finish(warp, copy, lanes);
    }
  };
  for (CopyGroup& group : warp.copy_groups) finish_in(group.copies);
  finish_in(warp.open_copies.copies);
  remove_finished(warp.open_copies.copies);
}

bool complete_some_copy(Warp& warp) {
  // The oldest or any, for one is as legal as the other.
  CopyGroup* group = nullptr;
  const size_t groups = warp.copy_groups.size() + !warp.open_copies.copies.empty();
  if (groups == 0) return false;
  const size_t k = worker(warp).random() & 1 ? 0 : worker(warp).random() % groups;
  group = k < warp.copy_groups.size() ? &warp.copy_groups[k] : &warp.open_copies;
  bool any = false;
  for (PendingCopy& copy : group->copies) {
    any |= (copy.lanes & ~copy.arrived) != 0;
    deliver_lanes(warp, copy, copy.lanes);
  }
  return any;
}

}  // namespace vgpu
