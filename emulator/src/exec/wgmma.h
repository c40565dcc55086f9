// wgmma: what is decoded, and the rules that its registers and operands in shared memory are held to.
#pragma once

#include <cstdint>
#include <vector>

#include "core/warp.h"
#include "exec/matrix_fragments.h"
#include "exec/wgmma_descriptor.h"

namespace vgpu {

struct WgmmaPlan {
  Element a = Element::kF16, b = Element::kF16;
  Accumulator d = Accumulator::kF32;
  uint32_t n = 8, k = 16;
  bool a_in_registers = false;
  bool a_mn_major = false, b_mn_major = false;
  bool negate_a = false, negate_b = false;
  bool saturate = false;
  bool scale_negated = false;
  Slot scale = kNoSlot;  // predicate: false ignores what the accumulators hold
  Slot a_descriptor = kNoSlot, b_descriptor = kNoSlot;
  std::vector<Slot> d_slots, a_slots;
  std::vector<uint32_t> d_registers, a_registers;  // by number
  uint32_t shape = 0;                              // equal for what may follow each other on the same accumulators
};

// The operands of one execution.
struct WgmmaOperands {
  MatrixDescriptor a, b;
  bool accumulate = true;
};

// exec/wgmma_execute.cpp: the 16 rows of this warp.
void multiply_warp(Warp& warp, const Instruction& i, const WgmmaPlan& plan, const WgmmaOperands& operands);

// exec/wgmma_checks.cpp, all with checks on only. Before the multiplication …
void check_wgmma_registers(Warp& warp, const Instruction& i, const WgmmaPlan& plan, bool accumulate);
void check_wgmma_operands(Warp& warp, const Instruction& i, const WgmmaPlan& plan, const WgmmaOperands& operands);
// … and after it: registers and shared memory are in flight.
void begin_wgmma(Warp& warp, const Instruction& i, const WgmmaPlan& plan, const WgmmaOperands& operands);
void fence_wgmma(Warp& warp);
void commit_wgmma(Warp& warp);
void wait_wgmma(Warp& warp, uint32_t keep);

}  // namespace vgpu
