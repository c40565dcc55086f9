// What ld, st, atom and red share: state spaces, the modifiers that change nothing here, lanes of registers.
#pragma once

#include <cstring>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include "core/access.h"
#include "core/decode.h"

namespace vgpu {

// A 128-bit register's lane; its slot has a plane of low and a plane of high halves.
struct alignas(16) Quad {
  uint64_t low, high;
  bool operator==(const Quad&) const = default;
};

// How lanes of a register hold a value of this type.
template <class T>
using LaneOf = std::conditional_t<sizeof(T) <= 4, uint32_t, uint64_t>;

template <class T>
inline T get_lane(const Warp& warp, Slot slot, uint32_t lane) {
  if constexpr (std::is_same_v<T, Quad>) {
    return {warp.u64(slot)[lane], warp.u64(slot)[kLanes + lane]};
  } else {
    return static_cast<T>(warp.lanes<LaneOf<T>>(slot)[lane]);
  }
}

template <class T>
inline void set_lane(const Warp& warp, Slot slot, uint32_t lane, T value) {
  if constexpr (std::is_same_v<T, Quad>) {
    warp.u64(slot)[lane] = value.low;
    warp.u64(slot)[kLanes + lane] = value.high;
  } else {
    warp.lanes<LaneOf<T>>(slot)[lane] = value;
  }
}

// The memory operand of an instruction, decoded: what set_access() needs at each execution. Kept in the Instruction:
// slot[0] is the base, `immediate` the offset, extra[0..2] space, bytes per lane and flags.
enum AccessFlag : uint32_t {
  kWideBase = 1,  // the base has 64-bit lanes
  kOwnBlock = 2,  // .shared or .shared::cta: not another block of the cluster
  kAcquires = 4,
  kReleases = 8,
  kStrong = 16,  // volatile, relaxed, …
  kNarrow = 32,  // scope .cta
  // An ordinary load through the address register of a compare-and-swap: it gives the loop its first guess, as CUDA's
  // own headers do, and a torn or stale value only fails the swap. Counts as strong for the race checks.
  kBeforeSwap = 64,
  kReadOnly = 128,  // .nc
};

// Consumes the state space; kNone when there is none.
ptx::Space take_space(Decoder& d, uint32_t* flags);
// Consumes .sem and .scope. Sets kAcquires, kReleases, kStrong.
void take_semantics(Decoder& d, uint32_t* flags);
// Consumes hints about caches. True when a cache policy operand follows the others.
bool take_cache_hints(Decoder& d);
// Decodes [base + offset] and fills the fields named above; tells the shadows.
void decode_address(Decoder& d, const ptx::Operand& operand, ptx::Space space, uint32_t bytes, uint32_t flags);
// {a, b} or a alone.
std::span<const ptx::Operand> elements_of(const ptx::Operand& operand);
// 1, or the length that .v2, .v4, .v8 gives.
uint32_t take_vector(Decoder& d);

// Faults for an address of another block of the cluster.
void refuse_other_block(Warp& warp, const Instruction& i, const Access& access);

// What resolve() does for the block's own shared memory when nothing is checked or counted. False: it has to look
// closer.
bool resolve_own_shared(Warp& warp, Access& access);

// Finds the lanes' host bytes for an instruction that decode_address() filled.
inline void set_access(Warp& warp, const Instruction& i, Touch touch, Access& access) {
  const uint32_t flags = i.extra[2];
  access.space = static_cast<ptx::Space>(i.extra[0]);
  access.touch = touch;
  access.bytes = i.extra[1];
  access.lanes = warp.active;
  access.acquire = flags & kAcquires;
  access.release = flags & kReleases;
  access.narrow = flags & kNarrow;
  access.read_only = flags & kReadOnly;
  load_addresses(warp, i.slot[0], flags & kWideBase, i.immediate, access);
  if (flags & kOwnBlock) {
    uint64_t ranks = 0;
    for (uint32_t l = 0; l < kLanes; ++l) ranks |= access.lanes >> l & 1 ? access.address[l] : 0;
    if (static_cast<uint32_t>(ranks) >> kRankShift) refuse_other_block(warp, i, access);
    if (!warp.checks() && counters(warp, i) == nullptr && resolve_own_shared(warp, access)) return;
  }
  resolve(warp, i, access);
}

// For volatile and relaxed accesses, which set `control`: lanes make progress independently, so now and then some of
// them do the access and run ahead, and the others come later.
void part_ways(Warp& warp);

// After an atomic or strong load: another block may have published what it knows between resolve() and the load.
void acquire_again(Warp& warp, const Access& access);

// Two lanes of a store wrote different values to the same place; `lane` does not find its own.
[[noreturn]] void refuse_collision(Warp& warp, const Instruction& i, const Access& access, uint32_t lane);

// Lanes lie one after the other.
inline bool is_contiguous(const Access& access) {
  if (access.lanes != kAllLanes) return false;
  uint64_t differences = 0;
  const std::byte* p = access.host[0];
  for (uint32_t l = 0; l < kLanes; ++l) {
    differences |= reinterpret_cast<uint64_t>(access.host[l]) ^ (reinterpret_cast<uint64_t>(p) + l * access.bytes);
  }
  return differences == 0;
}

}  // namespace vgpu
