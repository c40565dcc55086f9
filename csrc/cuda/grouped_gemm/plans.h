// The plan of a product: its problem as the policy sees it.
#pragma once

#include "cuda/device.h"
#include "cuda/grouped_gemm/product.h"

namespace moe::cuda {

GemmPlan rows_plan(const RowsProduct& product, const Device& device, bool deterministic);
GemmPlan wgrad_plan(const WgradProduct& product, const Device& device, bool deterministic);

}  // namespace moe::cuda
