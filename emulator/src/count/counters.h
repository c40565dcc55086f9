// What a launch did, counted. Times are not modelled: these are the numbers that times follow from.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

namespace vgpu {

enum class InstructionClass : uint8_t {
  kInteger,
  kFloat,
  kConversion,
  kMove,
  kMemory,
  kControl,
  kCollective,
  kMatrix,
  kAsync,
  kOther
};
constexpr int kInstructionClasses = 10;
const char* name(InstructionClass c);

// One instruction, or a sum of several. A request is one executed warp instruction that touches the memory named.
struct Counters {
  uint64_t warp_instructions = 0;
  uint64_t lane_instructions = 0;  // lanes that the guard let through
  uint64_t matrix_macs = 0;        // multiply-adds that matrix instructions issued
  uint64_t global_requests = 0;
  uint64_t global_bytes = 0;          // asked for
  uint64_t global_sectors = 0;        // of 32 bytes, per request
  uint64_t global_sectors_ideal = 0;  // the least that global_bytes could need, per request
  uint64_t global_atomics = 0;        // lanes
  uint64_t shared_requests = 0;
  uint64_t shared_bytes = 0;
  uint64_t shared_wavefronts = 0;
  uint64_t shared_wavefronts_ideal = 0;  // with no bank conflict
  uint64_t async_bytes = 0;              // moved by bulk and tensor copies
  uint64_t barriers = 0;                 // warps that arrived at a block, named or cluster barrier
  uint64_t divergent_branches = 0;

  void operator+=(const Counters& other);
};

// One instruction of the kernel.
struct InstructionCounters {
  uint32_t ptx_line = 0;
  uint32_t file = 0, line = 0;  // file: index into LaunchRecord::files
  InstructionClass kind = InstructionClass::kOther;
  std::string opcode;  // "ld.global.v4.f32"
  Counters counters;
};

struct LaunchRecord {
  uint64_t number = 0;  // counts from 1 on each Gpu
  std::string kernel;   // demangled
  std::string chip;
  std::array<uint32_t, 3> grid{}, block{}, cluster{};
  uint32_t dynamic_shared_bytes = 0, static_shared_bytes = 0;
  uint64_t stream = 0;
  double host_seconds = 0;                                           // of the emulation
  uint64_t distinct_sectors_read = 0, distinct_sectors_written = 0;  // of global memory, 32 bytes
  std::array<uint64_t, kInstructionClasses> instructions_by_class{};
  Counters total;
  std::vector<std::string> files;
  std::vector<InstructionCounters> instructions;  // empty with counters off; only those executed
  std::vector<uint32_t> lines_never_executed;     // PTX lines, for coverage
};

}  // namespace vgpu
