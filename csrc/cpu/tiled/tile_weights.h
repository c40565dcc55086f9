#pragma once

#include "cpu/parallel.h"
#include "moe/tiled_weights.h"

namespace moe::cpu {

void tile_weights(const TileWeightsParams& params, const Parallel& parallel);

}  // namespace moe::cpu
