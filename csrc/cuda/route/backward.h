// The two kernels behind route_backward.
//
// With s the scores of the chosen experts, g their incoming gradients times the scale and S = sum of s + eps:
//   renormalised:   dL/ds_k = (g_k - sum_j g_j s_j / S) / S, else g_k
//   softmax:        dL/dz_i = s_i (dL/ds_i - sum_j dL/ds_j s_j), over all experts, or over the chosen ones
//   other scores:   dL/dz_k = dL/ds_k times the slope of the score
// Statistics add, with G their gradient by expert, p the softmax over all experts and C the sum of all scores:
//   softmax:        p_i (G_i - sum_j G_j p_j)
//   other scores:   (G_i - sum_j G_j s_j / C) / C times the slope of the score
//   z:              2 logsumexp(z) p_i times its gradient
#pragma once

#include "cuda/launch.h"
#include "moe/route.h"

namespace moe::cuda::routing {

bool fits_registers(const RouteBackwardParams& params);
Outcome backward_in_registers(const RouteBackwardParams& params, Stream stream);
Outcome backward_any(const RouteBackwardParams& params, Stream stream);

}  // namespace moe::cuda::routing
