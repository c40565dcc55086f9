// Weight gradients as their kernel sees them: out contiguous along the columns of `right`. wgrad.cu fills the struct,
// a file per dtype launches.
#pragma once

#include "cuda/common/fast_divide.h"
#include "cuda/launch.h"
#include "cuda/policy/gemm_plan.h"

namespace moe::cuda::mma {

struct WgradOperand {
  const char* data;
  const int32_t* gather;  // or null
  FastDivide divisor;     // by 1 without a gather
  uint32_t limit;         // rows, or entries of the gather, from here on point nowhere; as do negative ones
  int32_t columns;
  int32_t row_bytes;  // from one row to the next
};

struct WgradArguments {
  WgradOperand left, right;
  const int32_t* expert_offsets;
  int32_t num_rows;
  void* out;
  int64_t out_expert_stride, out_stride;  // elements, out_stride from one column of left to the next
  bool accumulate;
  uint32_t tiles_m, tiles_n;  // of an expert's out; these and their product follow from the tile
  FastDivide tiles_per_expert;
};

Outcome wgrad_bfloat16(const WgradArguments& arguments, int64_t num_experts, const GemmPlan& plan, Stream stream);
Outcome wgrad_float16(const WgradArguments& arguments, int64_t num_experts, const GemmPlan& plan, Stream stream);
Outcome wgrad_tf32(const WgradArguments& arguments, int64_t num_experts, const GemmPlan& plan, Stream stream);

}  // namespace moe::cuda::mma
