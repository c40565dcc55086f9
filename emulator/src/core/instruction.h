// One decoded instruction, and the program of a kernel.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "count/counters.h"
#include "ptx/ast.h"

namespace vgpu {

constexpr uint32_t kLanes = 32;
using LaneMask = uint32_t;
constexpr LaneMask kAllLanes = ~0u;

struct Warp;
struct Instruction;
using Execute = void (*)(Warp&, const Instruction&);

// Bytes from the start of a warp's register file to an operand's 32 lanes. Immediates and special registers have slots
// too, so that execution never asks what kind of operand it has.
using Slot = uint32_t;
constexpr Slot kNoSlot = ~0u;

struct Instruction {
  Execute execute = nullptr;
  Slot guard = kNoSlot;
  bool guard_negated = false;
  // execute() moves the group's pc or makes it wait; otherwise the scheduler goes to the next instruction.
  bool control = false;
  // Copies bits only, also of registers that a wgmma in flight works on.
  bool copies = false;
  InstructionClass kind = InstructionClass::kOther;

  // What follows is for execute() alone, and means what its decoder says.
  std::array<Slot, 6> slot{kNoSlot, kNoSlot, kNoSlot, kNoSlot, kNoSlot, kNoSlot};
  int64_t immediate = 0;
  std::array<uint32_t, 6> extra{};
  std::vector<Slot> list;  // elements of vectors, fragments
  std::shared_ptr<const void> payload;

  // Register numbers (Warp::written): what is read, what is written, for the check of unwritten registers.
  std::vector<uint32_t> reads, writes;
  uint32_t index = 0;  // its place in Program::code
  const ptx::Statement* statement = nullptr;
};

// A special register's slot; filled when a block starts.
struct SpecialSlot {
  std::string name;  // "%tid.x"
  Slot slot = 0;
  bool wide = false;  // 64 bits
};

struct Program {
  std::vector<Instruction> code;
  uint32_t register_bytes = 0;  // of a warp's register file: constants, specials, registers
  uint32_t register_count = 0;
  std::vector<std::byte> constants;  // what the register file begins with
  std::vector<SpecialSlot> specials;
  std::vector<std::string> register_names;
  uint32_t local_bytes = 0;  // per thread: depots and call parameters
  // The narrowest access of each kind, in bytes: what the shadows resolve.
  uint32_t shared_granule = 4, global_granule = 4;
  bool uses_reserved_shared = false;  // cooperative groups keep state in the bytes below the kernel's own
  bool uses_wgmma = false;
};

}  // namespace vgpu
