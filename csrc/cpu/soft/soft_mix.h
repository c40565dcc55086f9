#pragma once

#include "cpu/parallel.h"
#include "moe/soft.h"

namespace moe::cpu {

Status soft_mix(const SoftMixParams& params, const Parallel& parallel);
Status soft_mix_backward(const SoftMixBackwardParams& params, const Parallel& parallel);

}  // namespace moe::cpu
