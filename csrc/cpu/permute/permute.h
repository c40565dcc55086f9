#pragma once

#include "cpu/parallel.h"
#include "moe/permute.h"

namespace moe::cpu {

// kUnsupported when memory for the counters cannot be had.
Status permute(const PermuteParams& params, const Parallel& parallel);
// row_to_slot must hold slots of existing rows of x below num_valid.
Status gather_rows(const GatherRowsParams& params, const Parallel& parallel);

}  // namespace moe::cpu
