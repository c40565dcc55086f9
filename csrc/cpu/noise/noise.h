#pragma once

#include "cpu/parallel.h"
#include "moe/noise.h"

namespace moe::cpu {

Status noise(const NoiseParams& params, const Parallel& parallel);

}  // namespace moe::cpu
