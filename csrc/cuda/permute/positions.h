// slot_positions on CUDA. Contract: moe/positions.h.
#pragma once

#include "cuda/launch.h"
#include "moe/positions.h"

namespace moe::cuda {

// One launch for groups of few slots. For groups of many, three, or two for the counts alone; twelve more with
// priorities. Bytes that slot_positions needs as workspace.
int64_t slot_positions_workspace_bytes(const SlotPositionsParams& params);
Outcome slot_positions(const SlotPositionsParams& params, void* workspace, Stream stream);

}  // namespace moe::cuda
