#pragma once

#include "cpu/parallel.h"
#include "moe/top_p.h"

namespace moe::cpu {

Status cut_at_top_p(const TopPParams& params, const Parallel& parallel);

}  // namespace moe::cpu
