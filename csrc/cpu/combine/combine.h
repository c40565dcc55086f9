#pragma once

#include "cpu/parallel.h"
#include "moe/combine.h"

namespace moe::cpu {

Status combine_forward(const CombineParams& params, const Parallel& parallel);
Status combine_backward(const CombineBackwardParams& params, const Parallel& parallel);
Status segment_sum(const SegmentSumParams& params, const Parallel& parallel);

}  // namespace moe::cpu
