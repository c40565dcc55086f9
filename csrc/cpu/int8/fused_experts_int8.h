#pragma once

#include "cpu/parallel.h"
#include "moe/fused_experts_int8.h"

namespace moe::cpu {

Status fused_experts_int8(const FusedExpertsInt8Params& params, const Parallel& parallel);

}  // namespace moe::cpu
