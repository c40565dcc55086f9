#pragma once

#include "cpu/int8_kernels.h"
#include "cpu/parallel.h"
#include "moe/fused_experts_int8.h"

namespace moe::cpu {

// All `rows` of the matrix.
void quantize_int8(const Int8QuantizeParams& params, int64_t rows, const Parallel& parallel);

Status fused_experts_int8(const FusedExpertsInt8Params& params, const Parallel& parallel);

}  // namespace moe::cpu
