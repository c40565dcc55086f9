#include "core/access.h"

#include <algorithm>
#include <bit>
#include <cstring>

namespace vgpu {
namespace {

constexpr uint32_t kSectorBytes = 32;

bool writes(Touch t) { return t == Touch::kWrite || t == Touch::kAtomic || t == Touch::kStrongWrite; }

// lanes' addresses follow each other without a gap.
bool contiguous(const Access& a) {
  if (a.lanes != kAllLanes) return false;
  uint64_t wrong = 0;
  for (uint32_t l = 0; l < kLanes; ++l) wrong |= a.address[l] ^ (a.address[0] + l * uint64_t{a.bytes});
  return wrong == 0;
}

// Lanes are served in groups whose requests fit 128 bytes; within a group each bank gives one word a wavefront.
void count_shared(const Access& a, LaneMask lanes, Counters& c) {
  c.shared_requests += 1;
  c.shared_bytes += uint64_t{a.bytes} * static_cast<uint32_t>(std::popcount(lanes));
  uint32_t unit = std::max(a.bytes, 4u);
  uint32_t units_per_wavefront = std::max(128u / unit, 1u);
  uint32_t lanes_per_phase = std::min(units_per_wavefront, kLanes);
  uint32_t wavefronts = 0, ideal = 0;
  for (uint32_t begin = 0; begin < kLanes; begin += lanes_per_phase) {
    uint64_t seen[kLanes];
    uint8_t next[kLanes];
    uint8_t head[kLanes];
    uint8_t depth[kLanes] = {};
    uint32_t n = 0, most = 0;
    std::memset(head, 0xFF, units_per_wavefront);
    for (uint32_t l = begin; l < begin + lanes_per_phase; ++l) {
      if (!(lanes >> l & 1)) continue;
      uint64_t word = a.address[l] / unit;
      uint32_t bank = static_cast<uint32_t>(word % units_per_wavefront);
      bool known = false;
      for (uint8_t k = head[bank]; k != 0xFF; k = next[k]) known |= seen[k] == word;
      if (known) continue;
      seen[n] = word;
      next[n] = head[bank];
      head[bank] = static_cast<uint8_t>(n++);
      most = std::max<uint32_t>(most, ++depth[bank]);
    }
    wavefronts += most;
    ideal += n == 0 ? 0 : (n + units_per_wavefront - 1) / units_per_wavefront;
  }
  c.shared_wavefronts += wavefronts;
  c.shared_wavefronts_ideal += ideal;
}

void mark_sectors(Warp& warp, Allocation& a, uint64_t address, uint32_t bytes, bool write) {
  auto& bits = write ? a.sectors_written : a.sectors_read;
  if (bits == nullptr) return;
  uint64_t skew = a.base % kSectorBytes;
  uint64_t first = (address - a.base + skew) / kSectorBytes,
           last = (address - a.base + skew + bytes - 1) / kSectorBytes;
  for (uint64_t s = first; s <= last; ++s) {
    std::atomic_ref<uint64_t> word(bits[s / 64]);
    uint64_t bit = 1ull << (s % 64);
    if (!(word.load(std::memory_order_relaxed) & bit)) {
      if (!(word.fetch_or(bit, std::memory_order_relaxed) & bit)) {
        ++(write ? worker(warp).sectors_written : worker(warp).sectors_read);
      }
    }
  }
}

void check_alignment(Warp& warp, const Instruction& i, const Access& a, LaneMask lanes) {
  uint64_t low = 0;
  if (lanes == kAllLanes) {
    for (uint32_t l = 0; l < kLanes; ++l) low |= a.address[l];
  } else {
    for_lanes(lanes, [&](uint32_t l) { low |= a.address[l]; });
  }
  if ((low & (a.bytes - 1)) == 0) return;
  for_lanes(lanes, [&](uint32_t l) {
    if (a.address[l] & (a.bytes - 1)) {
      fault_at(warp, i, FaultKind::kMisaligned,
               "an access of " + std::to_string(a.bytes) + " bytes to an address that is no multiple of " +
                   std::to_string(a.bytes),
               static_cast<int>(l), a.address[l]);
    }
  });
}

uint64_t place_key(const Block& block, uint32_t offset) { return static_cast<uint64_t>(block.rank) << 32 | offset; }

void order_shared_atomic(Warp& warp, const Access& a, Block& block, uint32_t lane, uint32_t offset) {
  Cluster& cluster = *block.cluster;
  uint64_t key = place_key(block, offset);
  if (writes(a.touch) && (warp.has_fence || a.release)) {
    Knowledge& k = cluster.published.try_emplace(key, cluster.agents).first->second;
    if (a.release) {
      warp.clocks.release_into(k, 1u << lane, warp.alive);
    } else {
      k.join(warp.fence);
    }
  }
  if (a.touch != Touch::kStrongWrite && !cluster.published.empty()) {
    auto it = cluster.published.find(key);
    if (it != cluster.published.end()) warp.clocks.acquire(it->second, 1u << lane, warp.alive);
  }
}

void resolve_shared(Warp& warp, const Instruction& i, Access& a, LaneMask lanes) {
  bool checks = warp.checks();
  if (a.count) {
    if (Counters* c = counters(warp, i)) count_shared(a, lanes, *c);
  }
  std::array<SharedPlace, kLanes> place;
  for_lanes(lanes, [&](uint32_t l) {
    place[l] = shared_place(warp, i, static_cast<uint32_t>(a.address[l]), a.bytes, l);
    a.host[l] = place[l].block->shared.data() + place[l].offset;
  });
  if (checks) {
    auto shadow = [&](uint32_t l) -> SharedShadow& { return place[l].block->shadow; };
    switch (a.touch) {
      case Touch::kRead:
      case Touch::kAsyncRead:
        for_lanes(lanes, [&](uint32_t l) { shadow(l).read(warp, i, *place[l].block, l, place[l].offset, a.bytes); });
        break;
      case Touch::kWrite:
        for_lanes(lanes, [&](uint32_t l) {
          try {
            shadow(l).check_order_of_writes(warp, i, *place[l].block, l, place[l].offset, a.bytes);
          } catch (const Fault& f) {
            if (f.kind != FaultKind::kSharedRace) throw;
            a.must_match |= 1u << l;
            if (a.suspicion == nullptr) a.suspicion = std::make_shared<Fault>(f);
          }
          shadow(l).check_reads(warp, i, *place[l].block, l, place[l].offset, a.bytes);
        });
        for_lanes(lanes,
                  [&](uint32_t l) { a.collision |= shadow(l).record_write(warp, i, l, place[l].offset, a.bytes); });
        break;
      case Touch::kAtomic:
        for_lanes(lanes, [&](uint32_t l) {
          order_shared_atomic(warp, a, *place[l].block, l, place[l].offset);
          shadow(l).atomic(warp, i, *place[l].block, l, place[l].offset, a.bytes);
        });
        break;
      case Touch::kStrongRead:
        for_lanes(lanes, [&](uint32_t l) {
          order_shared_atomic(warp, a, *place[l].block, l, place[l].offset);
          shadow(l).strong_read(warp, i, *place[l].block, l, place[l].offset, a.bytes);
        });
        break;
      case Touch::kStrongWrite:
        for_lanes(lanes, [&](uint32_t l) {
          order_shared_atomic(warp, a, *place[l].block, l, place[l].offset);
          shadow(l).strong_write(warp, i, *place[l].block, l, place[l].offset, a.bytes);
        });
        break;
    }
  }
  if (a.touch == Touch::kWrite || a.touch == Touch::kStrongWrite) note_progress(warp);
}

// The allocation that holds [low, high), if this worker met it before.
Allocation* known_allocation(const Warp& warp, uint64_t low, uint64_t high) {
  for (Allocation* a : worker(warp).known_allocations) {
    if (a != nullptr && low >= a->base && high <= a->base + a->bytes) return a;
  }
  return nullptr;
}

Allocation& find_allocation(Warp& warp, const Instruction& i, uint64_t address, uint32_t bytes, int lane, bool write) {
  Memory& memory = warp.launch->gpu->memory();
  Allocation* a = known_allocation(warp, address, address + bytes);
  if (a == nullptr) {
    a = memory.find(address);
    if (a == nullptr || address + bytes > a->base + a->bytes) {
      fault_at(warp, i, FaultKind::kOutOfBounds,
               std::string(write ? "writes " : "reads ") + std::to_string(bytes) +
                   " bytes of global memory out of bounds, " +
                   memory.describe(address + (a == nullptr ? 0 : bytes - 1)),
               lane, address);
    }
    Worker& w = worker(warp);
    w.known_allocations[w.next_known++ % w.known_allocations.size()] = a;
  }
  if (a->freed) {
    fault_at(warp, i, FaultKind::kUseAfterFree, "touches global memory that was freed: " + memory.describe(address),
             lane, address);
  }
  if (write && a->read_only) {
    fault_at(warp, i, FaultKind::kOutOfBounds, "writes to constant memory: " + memory.describe(address), lane, address);
  }
  return *a;
}

void ensure_cells(Warp& warp, Allocation& a) {
  Launch& launch = *warp.launch;
  if (a.cells_of_launch.load(std::memory_order_acquire) == launch.number) return;
  std::lock_guard lock(launch.cells_mutex);
  if (a.cells_of_launch.load(std::memory_order_relaxed) == launch.number) return;
  uint32_t granule = launch.program->global_granule;
  if (a.cells == nullptr || (1u << a.cells->shift) > granule) a.cells = std::make_unique<RaceCells>(a.bytes, granule);
  if (launch.options.counters) {
    size_t sector_words = (a.bytes / kSectorBytes + 2) / 64 + 1;
    a.sectors_read = std::make_unique<uint64_t[]>(sector_words);
    a.sectors_written = std::make_unique<uint64_t[]>(sector_words);
  }
  a.cells_of_launch.store(launch.number, std::memory_order_release);
}

GlobalTouch global_touch(Touch t) {
  switch (t) {
    case Touch::kRead:
    case Touch::kAsyncRead:
      return GlobalTouch::kRead;
    case Touch::kWrite:
      return GlobalTouch::kWrite;
    case Touch::kStrongRead:
      return GlobalTouch::kStrongRead;
    default:
      return GlobalTouch::kAtomic;
  }
}

void check_global(Warp& warp, const Instruction& i, Allocation& a, uint32_t lane, uint64_t address, uint32_t bytes,
                  Touch touch, bool narrow = false) {
  uint64_t offset = address - a.base;
  if (a.written != nullptr && touch != Touch::kWrite && touch != Touch::kStrongWrite) {
    check_global_written(warp, i, a, lane, offset, bytes);
  }
  if (!a.read_only) check_global_race(warp, i, a, lane, offset, bytes, global_touch(touch), narrow);
}

void set_written(Allocation& a, uint64_t address, uint32_t bytes) {
  if (a.written == nullptr) return;
  uint64_t offset = address - a.base;
  for (uint64_t k = offset; k < offset + bytes;) {
    uint64_t in_word = k % 64, n = std::min<uint64_t>(64 - in_word, offset + bytes - k);
    uint64_t bits = n == 64 ? ~0ull : ((1ull << n) - 1) << in_word;
    std::atomic_ref<uint64_t> word(a.written[k / 64]);
    if ((word.load(std::memory_order_relaxed) & bits) != bits) word.fetch_or(bits, std::memory_order_relaxed);
    k += n;
  }
}

void check_unawaited_writes(Warp& warp, const Instruction& i, const Access& a, LaneMask lanes) {
  for (const UnawaitedWrite& w : warp.block->cluster->unawaited_writes) {
    for_lanes(lanes, [&](uint32_t l) {
      if (a.address[l] >= w.end || a.address[l] + a.bytes <= w.begin) return;
      fault_at(warp, i, FaultKind::kAsyncTooEarly,
               "touches global memory that a bulk store writes, with no cp.async.bulk.wait_group (not .read) between",
               static_cast<int>(l), a.address[l], "stored at " + place(warp, w.pc));
    });
  }
}

void resolve_global_lanes(Warp& warp, const Instruction& i, Access& a, LaneMask lanes) {
  const bool write = writes(a.touch);
  uint64_t low = ~0ull, high = 0;
  if (lanes == kAllLanes) {
    for (uint32_t l = 0; l < kLanes; ++l) {
      low = std::min(low, a.address[l]);
      high = std::max(high, a.address[l]);
      a.host[l] = reinterpret_cast<std::byte*>(a.address[l]);
    }
  } else {
    for_lanes(lanes, [&](uint32_t l) {
      low = std::min(low, a.address[l]);
      high = std::max(high, a.address[l]);
      a.host[l] = reinterpret_cast<std::byte*>(a.address[l]);
    });
  }
  Allocation* one = known_allocation(warp, low, high + a.bytes);
  bool inside = one != nullptr && !one->freed && !(write && one->read_only);
  if (!inside) {
    one = nullptr;
    for_lanes(lanes, [&](uint32_t l) {
      Allocation& found = find_allocation(warp, i, a.address[l], a.bytes, static_cast<int>(l), write);
      if (low >= found.base && high + a.bytes <= found.base + found.bytes) one = &found;
    });
  }
  Counters* c = a.count ? counters(warp, i) : nullptr;
  bool checks = warp.checks();
  bool in_order = one != nullptr && (checks || c != nullptr || (write && one->written != nullptr)) && contiguous(a);
  auto of = [&](uint32_t l) -> Allocation& {
    return one != nullptr ? *one : find_allocation(warp, i, a.address[l], a.bytes, static_cast<int>(l), write);
  };
  if (c != nullptr || checks) {
    if (one != nullptr) {
      ensure_cells(warp, *one);
    } else {
      for_lanes(lanes, [&](uint32_t l) { ensure_cells(warp, of(l)); });
    }
  }
  if (c != nullptr) {
    uint64_t bytes = uint64_t{a.bytes} * static_cast<uint32_t>(std::popcount(lanes));
    c->global_requests += 1;
    c->global_bytes += bytes;
    c->global_sectors_ideal += (bytes + kSectorBytes - 1) / kSectorBytes;
    if (a.touch == Touch::kAtomic) c->global_atomics += static_cast<uint32_t>(std::popcount(lanes));
    if (in_order) {
      c->global_sectors += (high + a.bytes - 1) / kSectorBytes - low / kSectorBytes + 1;
      mark_sectors(warp, *one, low, static_cast<uint32_t>(high - low) + a.bytes, write);
    } else {
      Access part = a;
      part.lanes = lanes;
      c->global_sectors += count_sectors(part);
      uint64_t last_sector = ~0ull;
      for_lanes(lanes, [&](uint32_t l) {
        uint64_t sector = a.address[l] / kSectorBytes;
        if (sector == last_sector && a.bytes <= kSectorBytes) return;
        last_sector = sector;
        mark_sectors(warp, of(l), a.address[l], a.bytes, write);
      });
    }
  }
  if (checks) {
    if (!warp.block->cluster->unawaited_writes.empty() && a.touch != Touch::kAtomic)
      check_unawaited_writes(warp, i, a, lanes);
    bool strong = a.touch == Touch::kAtomic || a.touch == Touch::kStrongRead || a.touch == Touch::kStrongWrite;
    if (strong) {
      for_lanes(lanes, [&](uint32_t l) {
        if (a.release) warp.clocks.fence_wide();
        bool has_fence = warp.has_wide_fence || a.release || !warp.block->cluster->other_clusters.empty();
        if (a.touch != Touch::kStrongRead && has_fence) publish_globally(warp, a.address[l]);
        if (a.touch != Touch::kStrongWrite) acquire_globally(warp, a.address[l], a.acquire);
        check_global(warp, i, of(l), l, a.address[l], a.bytes, a.touch, a.narrow);
      });
    } else if (in_order && touch_fresh_range(warp, *one, low - one->base, a.bytes, write)) {
      if (one->written != nullptr && !write) {
        for_lanes(lanes,
                  [&](uint32_t l) { check_global_written(warp, i, *one, l, a.address[l] - one->base, a.bytes); });
      }
    } else {
      for_lanes(lanes, [&](uint32_t l) {
        if (a.read_only) check_read_only(warp, i, of(l), l, a.address[l] - of(l).base, a.bytes);
        check_global(warp, i, of(l), l, a.address[l], a.bytes, a.touch);
      });
    }
  }
  if (write) {
    if (in_order) {
      set_written(*one, low, a.bytes * kLanes);
    } else if (one == nullptr || one->written != nullptr) {
      for_lanes(lanes, [&](uint32_t l) { set_written(of(l), a.address[l], a.bytes); });
    }
    if (a.touch != Touch::kAtomic) note_progress(warp);
  }
}

void resolve_local(Warp& warp, const Instruction& i, Access& a, LaneMask lanes) {
  uint32_t size = warp.program->local_bytes;
  for_lanes(lanes, [&](uint32_t l) {
    uint64_t offset = static_cast<uint32_t>(a.address[l]);
    if (offset + a.bytes > size) {
      fault_at(warp, i, FaultKind::kOutOfBounds,
               "touches local memory at offset " + std::to_string(offset) + " of " + std::to_string(size) + " bytes",
               static_cast<int>(l), offset);
    }
    uint64_t at = uint64_t{l} * size + offset;
    a.host[l] = warp.local.data() + at;
    if (!warp.checks()) return;
    uint8_t* written = warp.local_written.data() + at;
    if (writes(a.touch)) {
      std::memset(written, 1, a.bytes);
    } else if (warp.launch->options.uninitialised &&
               std::find(written, written + a.bytes, uint8_t{0}) != written + a.bytes) {
      fault_at(warp, i, FaultKind::kUninitialisedLocal,
               "reads local memory at offset " + std::to_string(offset) + ", which this thread has not written",
               static_cast<int>(l), offset);
    }
  });
}

void resolve_parameters(Warp& warp, const Instruction& i, Access& a, LaneMask lanes) {
  auto& parameters = warp.launch->parameters;
  for_lanes(lanes, [&](uint32_t l) {
    uint64_t offset = static_cast<uint32_t>(a.address[l]);
    if (offset + a.bytes > parameters.size()) {
      fault_at(warp, i, FaultKind::kOutOfBounds,
               "reads past the kernel's " + std::to_string(parameters.size()) + " bytes of parameters",
               static_cast<int>(l), offset);
    }
    if (writes(a.touch)) {
      fault_at(warp, i, FaultKind::kOutOfBounds, "writes to a kernel's parameters", static_cast<int>(l), offset);
    }
    a.host[l] = parameters.data() + offset;
  });
}

}  // namespace

void note_progress(Warp& warp) {
  warp.block->cluster->instructions_since_progress = 0;
  auto& p = warp.launch->global_progress;
  p.store(p.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
}

void refuse_race(const Access& access) { throw Fault(*access.suspicion); }

SharedPlace shared_place(Warp& warp, const Instruction& i, uint32_t address, uint32_t bytes, uint32_t lane) {
  Block* block = warp.block;
  uint32_t rank = address >> kRankShift;
  uint32_t offset = address & ((1u << kRankShift) - 1);
  int by = lane < kLanes ? static_cast<int>(lane) : -1;
  if (rank != 0) {
    auto& blocks = block->cluster->blocks;
    if (rank > blocks.size()) {
      fault_at(warp, i, FaultKind::kOutOfBounds,
               "touches shared memory of block " + std::to_string(rank - 1) + " of a cluster of " +
                   std::to_string(blocks.size()),
               by, address);
    }
    block = blocks[rank - 1].get();
    if (block != warp.block && block->exited == block->threads) {
      fault_at(warp, i, FaultKind::kUseAfterFree,
               "touches shared memory of block " + std::to_string(rank - 1) + " of the cluster, which has ended", by,
               address);
    }
  }
  if (block != warp.block && warp.checks()) {
    auto same = std::find_if(block->remote_touches.begin(), block->remote_touches.end(),
                             [&](const Block::RemoteTouch& t) { return t.agent == warp.clocks.self; });
    if (same == block->remote_touches.end()) same = block->remote_touches.insert(same, {warp.clocks.self, 0, 0});
    same->time = warp.clocks.now;
    same->pc = i.index;
  }
  const uint32_t first = warp.program->uses_reserved_shared ? 0 : kSharedBase;
  if (offset < first || offset + uint64_t{bytes} > block->shared.size()) {
    fault_at(warp, i, FaultKind::kOutOfBounds,
             "touches " + std::to_string(bytes) + " bytes of shared memory at offset " +
                 std::to_string(static_cast<int64_t>(offset) - kSharedBase) + " of " +
                 std::to_string(block->shared.size() - kSharedBase),
             by, offset);
  }
  return {block, offset};
}

void load_addresses(const Warp& warp, Slot base, bool wide, int64_t offset, Access& access) {
  if (wide) {
    const uint64_t* p = warp.u64(base);
    for (uint32_t l = 0; l < kLanes; ++l) access.address[l] = p[l] + static_cast<uint64_t>(offset);
  } else {
    const uint32_t* p = warp.u32(base);
    for (uint32_t l = 0; l < kLanes; ++l)
      access.address[l] = static_cast<uint32_t>(p[l] + static_cast<uint32_t>(offset));
  }
}

void count_shared_access(const Warp& warp, const Instruction& i, const Access& access) {
  if (Counters* c = counters(warp, i)) count_shared(access, access.lanes, *c);
}

uint32_t count_sectors(const Access& a) {
  uint64_t sectors[kLanes * 2];
  uint32_t n = 0;
  for_lanes(a.lanes, [&](uint32_t l) {
    uint64_t first = a.address[l] / kSectorBytes, last = (a.address[l] + a.bytes - 1) / kSectorBytes;
    for (uint64_t s = first; s <= last; ++s) {
      if (n == 0 || sectors[n - 1] != s) sectors[n++] = s;
    }
  });
  if (!std::is_sorted(sectors, sectors + n)) std::sort(sectors, sectors + n);
  return static_cast<uint32_t>(std::unique(sectors, sectors + n) - sectors);
}

void resolve(Warp& warp, const Instruction& i, Access& a) {
  check_alignment(warp, i, a, a.lanes);
  switch (a.space) {
    case ptx::Space::kShared:
      resolve_shared(warp, i, a, a.lanes);
      return;
    case ptx::Space::kGlobal:
    case ptx::Space::kConst:
      resolve_global_lanes(warp, i, a, a.lanes);
      return;
    case ptx::Space::kLocal:
      resolve_local(warp, i, a, a.lanes);
      return;
    case ptx::Space::kParam:
      resolve_parameters(warp, i, a, a.lanes);
      return;
    default:
      break;
  }
  LaneMask in[4] = {};
  for_lanes(a.lanes, [&](uint32_t l) {
    uint64_t window = a.address[l] >> kWindowShift;
    if (window > 3) {
      fault_at(warp, i, FaultKind::kOutOfBounds, "a generic address in no window", static_cast<int>(l), a.address[l]);
    }
    in[window] |= 1u << l;
  });
  if (in[0] != 0) resolve_global_lanes(warp, i, a, in[0]);
  if (in[1] != 0) resolve_shared(warp, i, a, in[1]);
  if (in[2] != 0) resolve_local(warp, i, a, in[2]);
  if (in[3] != 0) resolve_parameters(warp, i, a, in[3]);
}

std::byte* resolve_global(Warp& warp, const Instruction& i, uint64_t address, uint32_t bytes, Touch touch,
                          uint32_t lane) {
  bool write = writes(touch);
  Allocation& a = find_allocation(warp, i, address, bytes, lane < kLanes ? static_cast<int>(lane) : -1, write);
  Counters* c = counters(warp, i);
  if (c != nullptr || warp.checks()) ensure_cells(warp, a);
  if (c != nullptr) {
    c->global_requests += 1;
    c->global_bytes += bytes;
    c->global_sectors += (address + bytes - 1) / kSectorBytes - address / kSectorBytes + 1;
    c->global_sectors_ideal += (bytes + kSectorBytes - 1) / kSectorBytes;
    mark_sectors(warp, a, address, bytes, write);
  }
  if (warp.checks()) check_global(warp, i, a, lane, address, bytes, touch);
  if (write) {
    set_written(a, address, bytes);
    note_progress(warp);
  }
  return reinterpret_cast<std::byte*>(address);
}

}  // namespace vgpu
