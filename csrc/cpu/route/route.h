#pragma once

#include "cpu/parallel.h"
#include "moe/route.h"

namespace moe::cpu {

// With NonFinite::kError: kInvalidArgument if a row holds NaN, +inf or nothing but -inf, and *bad_token is the first
// such row (else -1). kUnsupported when memory for a few rows cannot be had.
Status route_forward(const RouteParams& params, const Parallel& parallel, int64_t* bad_token);
Status route_backward(const RouteBackwardParams& params, const Parallel& parallel);

}  // namespace moe::cpu
