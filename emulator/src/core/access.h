// The way from an address in a register to a host byte: spaces, bounds, alignment, shadows, counters.
#pragma once

#include <array>
#include <cstdint>
#include <memory>

#include "core/block.h"

namespace vgpu {

constexpr uint32_t kWindowShift = 56;
constexpr uint64_t kSharedWindow = 1ull << kWindowShift;
constexpr uint64_t kLocalWindow = 2ull << kWindowShift;
constexpr uint64_t kParameterWindow = 3ull << kWindowShift;
constexpr uint32_t kRankShift = 24;  // of shared addresses: cluster rank + 1; 0 is the own block

enum class Touch : uint8_t {
  kRead,
  kWrite,
  kAtomic,       // atom, red
  kStrongRead,   // volatile, relaxed, acquire: no race by itself
  kStrongWrite,  // volatile, relaxed, release
  kAsyncRead,    // source of an asynchronous copy
};

// One warp instruction's access: the same number of bytes for each lane.
struct Access {
  ptx::Space space = ptx::Space::kNone;  // kNone: generic
  Touch touch = Touch::kRead;
  uint32_t bytes = 0;  // per lane: element size times vector length
  LaneMask lanes = 0;
  bool release = false, acquire = false;  // semantics of the access itself
  bool narrow = false;                    // an atomic of scope .cta
  bool read_only = false;                 // ld.nc: nothing may write there during the launch
  bool count = true;
  // Set by resolve() for ordinary stores. Lanes of this instruction write to the same place: their values must agree.
  bool collision = false;
  // Lanes that overwrite what another thread wrote with no order between: a fault, unless the bytes stay the same.
  LaneMask must_match = 0;
  std::shared_ptr<const Fault> suspicion;
  alignas(64) std::array<uint64_t, kLanes> address;
  alignas(64) std::array<std::byte*, kLanes> host;  // filled by resolve()
};

// Checks every lane's access, records it in the shadows, counts it, and finds its host bytes. Throws Fault.
void resolve(Warp& warp, const Instruction& i, Access& access);

// A store found lanes in must_match and their values differ from what is there.
[[noreturn]] void refuse_race(const Access& access);
// Something changed in memory that threads may be polling.
void note_progress(Warp& warp);

// Reads base slot + offset into access.address. `wide`: the slot has 64-bit lanes.
void load_addresses(const Warp& warp, Slot base, bool wide, int64_t offset, Access& access);

// A shared address (32 bits, as registers hold it) → block and offset. Faults when it leaves the block's shared memory.
struct SharedPlace {
  Block* block;
  uint32_t offset;
};
SharedPlace shared_place(Warp& warp, const Instruction& i, uint32_t address, uint32_t bytes, uint32_t lane);

// Global memory touched by something that is not a lane's load or store (bulk and tensor copies): bounds, freed memory,
// initialisation, races; counts sectors. Returns the host address.
std::byte* resolve_global(Warp& warp, const Instruction& i, uint64_t address, uint32_t bytes, Touch touch,
                          uint32_t lane);

// Counts what a warp asks of shared memory where resolve() does not see it: bytes, lanes and addresses.
void count_shared_access(const Warp& warp, const Instruction& i, const Access& access);

// Distinct 32-byte sectors that these accesses touch.
uint32_t count_sectors(const Access& access);

}  // namespace vgpu
