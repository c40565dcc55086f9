// route_top_p on CUDA, with the bits of the CPU. Contract: moe/top_p.h; of NonFinite::kError: cuda/route/route.h.
#pragma once

#include "cuda/launch.h"
#include "moe/route.h"
#include "moe/top_p.h"

namespace moe::cuda {

// One launch for up to 512 experts of logits up to 32 bits wide, else two. `route` has the same results, top_k and
// tokens as `params`, and asks for scores as they are.
int64_t route_top_p_workspace_bytes(const RouteParams& route);
Outcome route_top_p(const RouteParams& route, const TopPParams& params, void* workspace, Stream stream);

}  // namespace moe::cuda
