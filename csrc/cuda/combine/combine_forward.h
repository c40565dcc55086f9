// The two kernels behind combine_forward.
#pragma once

#include "cuda/combine/combine.h"

namespace moe::cuda {

// The weighted sum alone.
Outcome combine_rows(const CombineParams& params, int64_t num_rows, Stream stream);

// The sum and dot products in one walk, for at most kMaxDots choices with a sum, any number without (out null).
constexpr int kMaxDots = 64;
Outcome combine_with_dots(const CombineParams& params, const CombineExtras& extras, Stream stream);

}  // namespace moe::cuda
