// soft_mix and soft_mix_backward on CUDA. Contract: moe/soft.h.
#pragma once

#include "cuda/device.h"
#include "cuda/launch.h"
#include "moe/soft.h"

namespace moe::cuda {

// Two launches: the statistics, the product.
Outcome soft_mix(const SoftMixParams& params, const Device& device, Stream stream);

// A launch for grad_values, two for grad_logits. The workspace holds <grad_mixed, mixed> of each result.
int64_t soft_mix_backward_workspace_bytes(const SoftMixBackwardParams& params);
Outcome soft_mix_backward(const SoftMixBackwardParams& params, void* workspace, const Device& device, Stream stream);

}  // namespace moe::cuda
