#pragma once

#include "cpu/parallel.h"
#include "moe/fused_experts.h"

namespace moe::cpu {

Status fused_experts(const FusedExpertsParams& params, const Parallel& parallel);
Status fused_experts_backward(const FusedExpertsBackwardParams& params, const Parallel& parallel);

}  // namespace moe::cpu
