// What the matrix instructions have in common.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/decode.h"
#include "core/warp.h"

namespace vgpu {

// Fault when a lane has exited or never existed.
void require_full_warp(const Warp& warp, const Instruction& i);

void count_macs(Warp& warp, const Instruction& i, uint64_t macs);

// Appends the slots of an operand of so many registers, a vector or one register, to Instruction::list.
void add_fragment(Decoder& d, size_t operand, size_t registers, const TypeInfo& type, bool destination);

// mma.sync of f64, after .sync.aligned was consumed.
void decode_mma_double(Decoder& d);

}  // namespace vgpu
