#include "count/counters.h"

namespace vgpu {

const char* name(InstructionClass c) {
  switch (c) {
    case InstructionClass::kInteger:
      return "integer";
    case InstructionClass::kFloat:
      return "float";
    case InstructionClass::kConversion:
      return "conversion";
    case InstructionClass::kMove:
      return "move";
    case InstructionClass::kMemory:
      return "memory";
    case InstructionClass::kControl:
      return "control";
    case InstructionClass::kCollective:
      return "collective";
    case InstructionClass::kMatrix:
      return "matrix";
    case InstructionClass::kAsync:
      return "async";
    case InstructionClass::kOther:
      return "other";
  }
  return "?";
}

void Counters::operator+=(const Counters& other) {
  warp_instructions += other.warp_instructions;
  lane_instructions += other.lane_instructions;
  matrix_macs += other.matrix_macs;
  global_requests += other.global_requests;
  global_bytes += other.global_bytes;
  global_sectors += other.global_sectors;
  global_sectors_ideal += other.global_sectors_ideal;
  global_atomics += other.global_atomics;
  shared_requests += other.shared_requests;
  shared_bytes += other.shared_bytes;
  shared_wavefronts += other.shared_wavefronts;
  shared_wavefronts_ideal += other.shared_wavefronts_ideal;
  async_bytes += other.async_bytes;
  barriers += other.barriers;
  divergent_branches += other.divergent_branches;
}

}  // namespace vgpu
