#pragma once

#include "cpu/parallel.h"
#include "moe/assign.h"

namespace moe::cpu {

// kUnsupported when memory to work in cannot be had.
Status expert_choice(const ExpertChoiceParams& params, const Parallel& parallel);
Status auction(const AuctionParams& params, const Parallel& parallel);
Status sinkhorn(const SinkhornParams& params, const Parallel& parallel);

}  // namespace moe::cpu
