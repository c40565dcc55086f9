// noise on CUDA: one launch, the bits of the CPU. Contract: moe/noise.h.
#pragma once

#include "cuda/launch.h"
#include "moe/noise.h"

namespace moe::cuda {

Outcome noise(const NoiseParams& params, Stream stream);

}  // namespace moe::cuda
