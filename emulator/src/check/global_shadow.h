// Global memory's races within a launch: which thread of which cluster wrote or read each granule last.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <unordered_map>

#include "check/clocks.h"
#include "core/memory.h"

namespace vgpu {

struct Cluster;
struct Launch;

// tag:8 (of the launch) | atomic:1 | narrow:1 | cluster:22 | agent:9 | lane:6 | time:17. 0: nothing.
using GlobalCell = uint64_t;

struct RaceCells {
  uint32_t shift = 2;
  std::unique_ptr<GlobalCell[]> writes, reads;
  RaceCells(uint64_t bytes, uint32_t granule);
};

// What clusters published with a fence and an atomic, by address of the atomic.
struct GlobalKnowledge {
  std::mutex mutex;
  std::unordered_map<uint64_t, std::unordered_map<uint64_t, Time>> by_address;
};

enum class GlobalTouch : uint8_t { kRead, kWrite, kAtomic, kStrongRead };

// Checks one lane's access and records it. The bytes lie within the allocation.
void check_global_race(Warp& warp, const Instruction& i, Allocation& allocation, uint32_t lane, uint64_t offset,
                       uint32_t bytes, GlobalTouch touch, bool narrow = false);
// Faults when this launch wrote there, ordered or not: the read-only path need not see it.
void check_read_only(Warp& warp, const Instruction& i, Allocation& allocation, uint32_t lane, uint64_t offset,
                     uint32_t bytes);
// 32 lanes that touch elements one after the other, where no one has touched anything in this launch (reads: written
// anything): records them and returns true. Otherwise changes nothing.
bool touch_fresh_range(Warp& warp, Allocation& allocation, uint64_t offset, uint32_t bytes_per_lane, bool write);
// Faults when a byte was never written (and still holds the poison).
void check_global_written(Warp& warp, const Instruction& i, Allocation& allocation, uint32_t lane, uint64_t offset,
                          uint32_t bytes);
// Atomics and strong accesses order what a fence released before them.
void publish_globally(Warp& warp, uint64_t address);
// `fenced`: by an access with .acquire. Else what was read counts only from the block's next fence on.
void acquire_globally(Warp& warp, uint64_t address, bool fenced);
void acquire_at_fence(Cluster& cluster);

}  // namespace vgpu
