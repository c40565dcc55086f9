// A warp: 32 lanes, their registers, and where each of them is.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "check/clocks.h"
#include "check/fault.h"
#include "core/instruction.h"

namespace vgpu {

struct Block;
struct Launch;
struct Worker;

enum class Wait : uint8_t {
  kNone,
  kConverge,  // at a collective, until its other lanes come
  kBarrier,   // detail: its number
  kClusterBarrier,
};

// Lanes of a warp that are at the same instruction.
struct Group {
  uint32_t pc = 0;
  LaneMask lanes = 0;
  Wait wait = Wait::kNone;
  uint32_t detail = 0;
  bool yielded = false;  // failed a try_wait: let others go first
};

// cp.async (not bulk): what one warp instruction copies.
struct PendingCopy {
  LaneMask lanes = 0;    // that have not waited for it
  LaneMask arrived = 0;  // whose bytes are there already; in flight all the same until they waited
  uint32_t number = 0;   // counts the warp's copies
  uint32_t pc = 0;
  uint8_t bytes = 0;                  // per lane
  std::array<uint32_t, kLanes> to{};  // offset in shared memory
  std::array<const std::byte*, kLanes> from{};
  std::array<uint8_t, kLanes> valid{};  // bytes copied; the rest is zeros
};
struct CopyGroup {
  LaneMask lanes = 0;  // that committed it and have not waited for it
  std::vector<PendingCopy> copies;
};

// A wgmma group: what completes together.
struct WgmmaGroup {
  uint32_t last = 0;            // number of its newest wgmma
  std::vector<uint64_t> reads;  // SharedShadow ids
};

// A register as wgmmas see it.
struct WgmmaRegister {
  uint32_t touched = 0;  // number of the wgmma.fence after which something else wrote it
  uint32_t flight = 0;   // number of the newest wgmma that uses it, or whose result was copied into it
  uint32_t shape = 0;    // of that wgmma's accumulators; 0: a fragment of A
  uint32_t pc = 0;
};

// What the wgmmas of a warp use; kept with checks only.
struct WgmmaState {
  std::vector<WgmmaRegister> registers;  // by number; empty before the first wgmma.fence
  std::vector<uint32_t> in_flight;       // numbers of the registers that are
  WgmmaGroup open;
  std::vector<WgmmaGroup> groups;  // oldest first
  uint32_t fences = 0, issued = 0, completed = 0;
  uint32_t last_pc = 0;  // of the newest wgmma
};

struct Warp {
  std::byte* registers = nullptr;
  LaneMask active = 0;  // lanes that execute the current instruction: those of the group that its guard lets through
  LaneMask alive = 0;   // lanes that have not exited
  LaneMask born = 0;    // lanes that exist: fewer than 32 in the last warp of a block of an odd size
  uint32_t index = 0;   // in the block
  Block* block = nullptr;
  const Program* program = nullptr;
  Launch* launch = nullptr;
  Worker* worker = nullptr;
  std::vector<Group> groups;
  uint32_t current = 0;  // the group that executes

  std::vector<LaneMask> written;       // by register: lanes that hold a value
  std::vector<std::byte> local;        // lane after lane
  std::vector<uint8_t> local_written;  // the same, 1 where written

  WarpClocks clocks;
  Knowledge fence;  // what a relaxed atomic publishes: the knowledge at the last fence of wide enough scope
  uint32_t register_changes = 0, last_register_change = 0;  // setmaxnreg: how many, and the last one's pc

  bool has_fence = false;       // of any scope
  bool has_wide_fence = false;  // of cluster scope or wider: `fence` may be published to other blocks

  CopyGroup open_copies;               // not committed
  std::vector<CopyGroup> copy_groups;  // oldest first
  WgmmaState wgmma;
  // Per lane would be exact; bulk groups belong to the thread that issues, which is one elected lane in practice.
  std::array<uint32_t, kLanes> bulk_committed{};  // groups
  uint32_t next_copy = 0;
  // By parity of the cluster barrier's phase: lanes that arrived in it and have not waited.
  std::array<LaneMask, 2> cluster_arrived{};

  template <class T>
  T* lanes(Slot slot) const {
    return reinterpret_cast<T*>(registers + slot);
  }
  uint32_t* u32(Slot slot) const { return lanes<uint32_t>(slot); }
  uint64_t* u64(Slot slot) const { return lanes<uint64_t>(slot); }
  float* f32(Slot slot) const { return lanes<float>(slot); }
  double* f64(Slot slot) const { return lanes<double>(slot); }
  LaneMask predicate(Slot slot) const { return *lanes<LaneMask>(slot); }
  // Writes the active lanes' bits.
  void set_predicate(Slot slot, LaneMask value) const {
    LaneMask* p = lanes<LaneMask>(slot);
    *p = (*p & ~active) | (value & active);
  }
  Group& group() { return groups[current]; }
  bool checks() const;
};

// fn(lane) for each lane in the mask, lowest first.
template <class F>
inline void for_lanes(LaneMask mask, F&& fn) {
  while (mask) {
    fn(static_cast<uint32_t>(__builtin_ctz(mask)));
    mask &= mask - 1;
  }
}

// Throws a Fault about this instruction. `lane` −1: about the warp.
[[noreturn]] void fault(const Warp& warp, const Instruction& i, FaultKind kind, std::string message, int lane = -1,
                        std::string details = {});
[[noreturn]] void fault_at(const Warp& warp, const Instruction& i, FaultKind kind, std::string message, int lane,
                           uint64_t address, std::string details = {});
// "mma.cu:31 (warp 2, lane 4)": for the details of a report.
std::string place(const Warp& warp, uint32_t pc);

// For collectives, which set `control`. True: every lane of `wanted` that is alive executes this instruction now.
// False: the group waits for the rest; return at once, the instruction will be executed again when they are there.
// Faults when a wanted lane has exited, or the caller is not among the wanted.
bool converged(Warp& warp, const Instruction& i, LaneMask wanted);
// The same for .aligned instructions: all lanes that are alive.
inline bool converged(Warp& warp, const Instruction& i) { return converged(warp, i, warp.alive); }
// Control instructions that are done call it.
inline void advance(Warp& warp) { ++warp.group().pc; }

// Register bookkeeping for instructions in flight (wgmma).
void mark_unwritten(Warp& warp, const std::vector<uint32_t>& registers);
void mark_written(Warp& warp, const std::vector<uint32_t>& registers);

}  // namespace vgpu
