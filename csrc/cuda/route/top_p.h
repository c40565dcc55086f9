// The cut of route_top_p on CUDA: one launch, the bits of the CPU. Contract: moe/top_p.h.
#pragma once

#include "cuda/launch.h"
#include "moe/top_p.h"

namespace moe::cuda {

Outcome cut_at_top_p(const TopPParams& params, Stream stream);

}  // namespace moe::cuda
