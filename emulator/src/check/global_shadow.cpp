#include "check/global_shadow.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "core/block.h"

namespace vgpu {
namespace {

constexpr GlobalCell kAtomicBit = 1ull << 55;
constexpr GlobalCell kNarrowBit = 1ull << 54;  // of an atomic: scope .cta
constexpr uint64_t kClusterMask = (1ull << 22) - 1;
constexpr uint32_t kManyWarps = 62;     // lane of a read cell: several warps of one cluster
constexpr uint32_t kManyClusters = 63;  // … of several clusters

uint32_t tag_of(GlobalCell c) { return static_cast<uint32_t>(c >> 56); }
uint64_t cluster_of(GlobalCell c) { return c >> 32 & kClusterMask; }
Agent agent_of(GlobalCell c) { return static_cast<uint32_t>(c >> 23) & 511; }
uint32_t lane_of(GlobalCell c) { return static_cast<uint32_t>(c >> 17) & 63; }
Time time_of(GlobalCell c) { return static_cast<uint32_t>(c) & kMaxTime; }

GlobalCell make(const Warp& warp, uint32_t lane) {
  return static_cast<uint64_t>(warp.launch->tag) << 56 | (warp.block->cluster->number & kClusterMask) << 32 |
         static_cast<uint64_t>(warp.clocks.self) << 23 | lane << 17 | warp.clocks.now;
}

uint64_t key(uint64_t cluster, Agent agent) { return cluster << 9 | agent; }

bool ordered(const Warp& warp, uint32_t lane, GlobalCell cell) {
  const Cluster& mine = *warp.block->cluster;
  if (mine.renewed && cluster_of(cell) == (mine.number & kClusterMask)) return true;
  if (cluster_of(cell) == (mine.number & kClusterMask))
    return warp.clocks.knows(lane, agent_of(cell), lane_of(cell), time_of(cell));
  auto it = mine.other_clusters.find(key(cluster_of(cell), agent_of(cell)));
  return it != mine.other_clusters.end() && it->second >= time_of(cell);
}

std::string who(const Warp& warp, GlobalCell cell, const char* did) {
  std::string text = did;
  uint32_t lane = lane_of(cell);
  if (lane == kManyClusters) return text + " by several blocks";
  if (lane == kManyWarps) return text + " by several warps";
  uint64_t block = cluster_of(cell) * warp.launch->blocks_per_cluster + agent_of(cell) / warp.launch->warps_per_block;
  text += " by block " + std::to_string(block) + " (linear), warp " +
          std::to_string(agent_of(cell) % warp.launch->warps_per_block);
  if (lane < kLanes) text += ", lane " + std::to_string(lane);
  return text;
}

[[noreturn]] void race(Warp& warp, const Instruction& i, const Allocation& a, uint32_t lane, uint64_t offset,
                       const char* verb, GlobalCell other, const char* did) {
  bool same_block = cluster_of(other) == (warp.block->cluster->number & kClusterMask);
  fault_at(warp, i, FaultKind::kGlobalRace,
           std::string(verb) + " global memory " + std::to_string(offset) + " bytes into " +
               (a.label.empty() ? "an allocation" : a.label) + ", which " +
               (same_block ? "another thread of the block" : "another block") +
               " touches in the same launch, unordered",
           lane < kLanes ? static_cast<int>(lane) : -1, a.base + offset, who(warp, other, did));
}

}  // namespace

RaceCells::RaceCells(uint64_t bytes, uint32_t granule) : shift(static_cast<uint32_t>(std::countr_zero(granule))) {
  uint64_t n = (bytes >> shift) + 2;
  writes = std::make_unique<GlobalCell[]>(n);
  reads = std::make_unique<GlobalCell[]>(n);
}

void check_global_race(Warp& warp, const Instruction& i, Allocation& a, uint32_t lane, uint64_t offset, uint32_t bytes,
                       GlobalTouch touch, bool narrow) {
  RaceCells& cells = *a.cells;
  // Granules count from an aligned address, so that a base that is not aligned does not split elements.
  uint64_t skew = a.base & 3;
  size_t begin = (offset + skew) >> cells.shift, end = (offset + skew + bytes - 1) >> cells.shift;
  const uint32_t tag = warp.launch->tag;
  const GlobalCell mine = make(warp, lane);
  const Cluster& cluster = *warp.block->cluster;
  const bool before_dependency = !cluster.dependency_resolved;
  const uint32_t previous_tag = tag == 1 ? 255 : tag - 1;
  GlobalCell known_write = 0, known_read = 0;
  for (size_t g = begin; g <= end; ++g) {
    GlobalCell w = cells.writes[g];
    if (w != known_write) {
      if (before_dependency && tag_of(w) == previous_tag) {
        fault_at(warp, i, FaultKind::kGlobalRace,
                 "touches " + (a.label.empty() ? std::string("global memory") : a.label) +
                     ", which the launch before wrote, with no griddepcontrol.wait",
                 lane < kLanes ? static_cast<int>(lane) : -1, a.base + offset);
      }
      bool strong = touch == GlobalTouch::kAtomic || touch == GlobalTouch::kStrongRead;
      // Atomics of scope .cta are atomic within their block only.
      if ((narrow || (w & kNarrowBit)) && cluster_of(w) != cluster_of(mine)) strong = false;
      if (tag_of(w) == tag && !(strong && (w & kAtomicBit)) && !ordered(warp, lane, w)) {
        race(warp, i, a, lane, offset,
             touch == GlobalTouch::kRead || touch == GlobalTouch::kStrongRead ? "reads" : "writes", w, "written");
      }
      known_write = w;
    }
    if (touch == GlobalTouch::kStrongRead) continue;
    GlobalCell r = cells.reads[g];
    if (before_dependency && touch != GlobalTouch::kRead && tag_of(r) == previous_tag) {
      fault_at(warp, i, FaultKind::kGlobalRace,
               "writes " + (a.label.empty() ? std::string("global memory") : a.label) +
                   ", which the launch before read, with no griddepcontrol.wait",
               lane < kLanes ? static_cast<int>(lane) : -1, a.base + offset);
    }
    if (touch == GlobalTouch::kRead) {
      if (r == mine || lane_of(r) == kManyClusters) {
        if (tag_of(r) == tag) continue;
      }
      GlobalCell mark = mine;
      if (tag_of(r) == tag) {
        uint64_t many_clusters = cluster_of(r) != cluster_of(mine);
        if (many_clusters) {
          mark = (mine & ~(63ull << 17)) | static_cast<uint64_t>(kManyClusters) << 17;
        } else if (agent_of(r) != agent_of(mine) || lane_of(r) == kManyWarps) {
          mark = (mine & ~(63ull << 17)) | static_cast<uint64_t>(kManyWarps) << 17;
        }
      }
      cells.reads[g] = mark;
      continue;
    }
    if (r != known_read && tag_of(r) == tag) {
      bool bad = false;
      if (lane_of(r) == kManyClusters) {
        bad = !cluster.acquired_globally;
      } else if (lane_of(r) != kManyWarps || cluster_of(r) != cluster_of(mine)) {
        // Lanes of one warp run together; what one read before another wrote is left to the order of the program.
        bool own_warp = cluster_of(r) == cluster_of(mine) && agent_of(r) == agent_of(mine);
        bad = !own_warp && !(lane_of(r) == kManyWarps ? cluster.acquired_globally : ordered(warp, lane, r));
      }
      if (bad) race(warp, i, a, lane, offset, "writes", r, "read");
    }
    known_read = r;
    cells.writes[g] = touch == GlobalTouch::kAtomic ? mine | kAtomicBit | (narrow ? kNarrowBit : 0) : mine;
  }
}

void check_read_only(Warp& warp, const Instruction& i, Allocation& a, uint32_t lane, uint64_t offset, uint32_t bytes) {
  const RaceCells& cells = *a.cells;
  const uint64_t skew = a.base & 3;
  for (size_t g = (offset + skew) >> cells.shift; g <= (offset + skew + bytes - 1) >> cells.shift; ++g) {
    GlobalCell w = cells.writes[g];
    if (tag_of(w) != warp.launch->tag) continue;
    fault_at(warp, i, FaultKind::kGlobalRace,
             "reads through the read-only path (ld.nc) what this launch wrote, " + std::to_string(offset) +
                 " bytes into " + (a.label.empty() ? "an allocation" : a.label),
             lane < kLanes ? static_cast<int>(lane) : -1, a.base + offset, who(warp, w, "written"));
  }
}

bool touch_fresh_range(Warp& warp, Allocation& a, uint64_t offset, uint32_t bytes, bool write) {
  if (a.read_only) return true;
  if (!warp.block->cluster->dependency_resolved) return false;
  RaceCells& cells = *a.cells;
  const uint64_t skew = a.base & 3;
  const size_t begin = (offset + skew) >> cells.shift,
               end = ((offset + skew + uint64_t{bytes} * kLanes - 1) >> cells.shift) + 1;
  const uint64_t tag = warp.launch->tag;
  uint64_t touched = 0;
  for (size_t g = begin; g < end; ++g) touched |= static_cast<uint64_t>(cells.writes[g] >> 56 == tag);
  if (touched) return false;
  const GlobalCell mine = make(warp, kWholeWarp);
  if (write) {
    for (size_t g = begin; g < end; ++g) touched |= static_cast<uint64_t>(cells.reads[g] >> 56 == tag);
    if (touched) return false;
    const uint32_t lane_shift = static_cast<uint32_t>(std::countr_zero(std::max(bytes >> cells.shift, 1u)));
    const GlobalCell first = make(warp, 0);
    for (size_t g = begin; g < end; ++g)
      cells.writes[g] = first | static_cast<uint64_t>((g - begin) >> lane_shift & 31) << 17;
    return true;
  }
  const GlobalCell several = (mine & ~(63ull << 17)) | static_cast<uint64_t>(kManyWarps) << 17;
  const GlobalCell many = (mine & ~(63ull << 17)) | static_cast<uint64_t>(kManyClusters) << 17;
  const uint64_t my_cluster = mine >> 32, my_agent = mine >> 23;
  for (size_t g = begin; g < end; ++g) {
    GlobalCell r = cells.reads[g];
    GlobalCell mark = r >> 23 == my_agent && lane_of(r) <= kWholeWarp        ? mine
                      : r >> 32 == my_cluster && lane_of(r) != kManyClusters ? several
                                                                             : many;
    cells.reads[g] = r >> 56 == tag ? mark : mine;
  }
  return true;
}

void check_global_written(Warp& warp, const Instruction& i, Allocation& a, uint32_t lane, uint64_t offset,
                          uint32_t bytes) {
  const uint64_t* bits = a.written.get();
  for (uint64_t k = offset; k < offset + bytes;) {
    uint64_t in_word = k % 64;
    uint64_t n = std::min<uint64_t>(64 - in_word, offset + bytes - k);
    uint64_t want = n == 64 ? ~0ull : ((1ull << n) - 1) << in_word;
    uint64_t missing = want & ~bits[k / 64];
    if (missing != 0) {
      // The host may have written behind the emulator's back: only bytes that still hold the poison are a fault.
      const auto* p = reinterpret_cast<const std::byte*>(a.base + offset);
      bool poison = true;
      for (uint32_t b = 0; b < bytes; ++b) poison &= p[b] == kPoison;
      if (!poison) return;
      fault_at(warp, i, FaultKind::kUninitialisedGlobal,
               "reads " + std::to_string(bytes) + " bytes, " + std::to_string(offset) + " bytes into " +
                   (a.label.empty() ? "an allocation" : a.label) + ", which nothing has written",
               lane < kLanes ? static_cast<int>(lane) : -1, a.base + offset);
    }
    k += n;
  }
}

void publish_globally(Warp& warp, uint64_t address) {
  Cluster& cluster = *warp.block->cluster;
  GlobalKnowledge& all = *warp.launch->global_knowledge;
  std::lock_guard lock(all.mutex);
  auto& entry = all.by_address[address];
  const std::vector<Time>& wide = warp.clocks.all.wide;
  for (Agent a = 0; a < wide.size(); ++a) {
    if (wide[a] == 0) continue;
    Time& t = entry[key(cluster.number & kClusterMask, a)];
    t = std::max(t, wide[a]);
  }
  for (const auto& [k, time] : cluster.other_clusters) {
    Time& t = entry[k];
    t = std::max(t, time);
  }
  warp.launch->published.store(true, std::memory_order_release);
}

void acquire_globally(Warp& warp, uint64_t address, bool fenced) {
  if (!warp.launch->published.load(std::memory_order_acquire)) return;
  Cluster& cluster = *warp.block->cluster;
  GlobalKnowledge& all = *warp.launch->global_knowledge;
  std::lock_guard lock(all.mutex);
  auto it = all.by_address.find(address);
  if (it == all.by_address.end()) return;
  auto& known = fenced ? cluster.other_clusters : cluster.unfenced_clusters;
  for (const auto& [k, time] : it->second) {
    Time& t = known[k];
    t = std::max(t, time);
  }
  cluster.acquired_globally |= fenced;
}

void acquire_at_fence(Cluster& cluster) {
  if (cluster.unfenced_clusters.empty()) return;
  for (const auto& [k, time] : cluster.unfenced_clusters) {
    Time& t = cluster.other_clusters[k];
    t = std::max(t, time);
  }
  cluster.unfenced_clusters.clear();
  cluster.acquired_globally = true;
}

}  // namespace vgpu
