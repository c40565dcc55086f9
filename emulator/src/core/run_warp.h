// A warp's turn: its instructions one after the other, until it waits or its turn is over.
#pragma once

#include "core/block.h"

namespace vgpu {

// Some lanes are not waiting.
bool can_run(const Warp& warp);
// All lanes that are not waiting have polled in vain.
bool all_yielded(const Warp& warp);
// Runs up to `quantum` instructions; returns how many. kChecks: registers without a value are found, and with them the
// use of what a wgmma works on.
template <bool kChecks>
uint32_t run_warp(Worker& worker, Warp& warp, uint32_t quantum);

}  // namespace vgpu
