// Functions of the device runtime that kernels call.
#pragma once

#include <cstdint>

#include "core/warp.h"

namespace vgpu {

// vprintf(format, arguments) for one lane: generic addresses.
void print_formatted(Warp& warp, const Instruction& i, uint64_t format, uint64_t arguments, uint32_t lane);

// __assertfail(message, file, line, function, character size).
[[noreturn]] void fail_assertion(Warp& warp, const Instruction& i, uint64_t message, uint64_t file, uint32_t line,
                                 uint64_t function, uint32_t lane);

}  // namespace vgpu
