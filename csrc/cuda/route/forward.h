// The two kernels behind route_forward, with the same results where both apply.
#pragma once

#include "cuda/route/statistics.h"

namespace moe::cuda::routing {

// Rows that stand in the registers of a warp: all but float64, at most 512 experts and 32 choices.
bool fits_registers(const RouteParams& params);
// params.statistics are those of the chunks.
Outcome forward_in_registers(const RouteParams& params, const Chunks& chunks, Stream stream);

// Rows of any size.
int64_t any_workspace_bytes(const RouteParams& params, const Chunks& chunks);
Outcome forward_any(const RouteParams& params, const Chunks& chunks, void* workspace, Stream stream);

}  // namespace moe::cuda::routing
