#pragma once

#include "cpu/parallel.h"
#include "moe/positions.h"

namespace moe::cpu {

// kUnsupported when memory for the counters, or for sorting by priority, cannot be had.
Status slot_positions(const SlotPositionsParams& params, const Parallel& parallel);

}  // namespace moe::cpu
