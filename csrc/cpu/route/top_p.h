#pragma once

#include "cpu/parallel.h"
#include "moe/route.h"
#include "moe/top_p.h"

namespace moe::cpu {

// route, whose rule must neither renormalise nor scale and whose outputs are those of `params`, and then the cut. What
// *bad_token is: see route_forward.
Status route_top_p(const RouteParams& route, const TopPParams& params, const Parallel& parallel, int64_t* bad_token);

}  // namespace moe::cpu
