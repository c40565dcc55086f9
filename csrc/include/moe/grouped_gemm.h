// grouped_gemm: one matrix product per expert over that expert's segment of rows, in one call.
//
// Rows are sorted by expert; expert e owns rows expert_offsets[e] .. expert_offsets[e+1]. With a gather, row r is
// rows[gather[r]]. Sums run over k in float32 (float64 for float64 data) in an order that k alone decides.
#pragma once

#include "moe/types.h"

namespace moe {

// An expert's matrix seen as [n, k] through strides, in elements; any of them may be the contiguous one.
struct ExpertMatrix {
  const void* data;
  int64_t expert_stride, n_stride, k_stride;
  // As moe/tiled_weights.h has it, CPU only: n_stride spreads a panel, with all its parts, over its columns.
  bool is_tiled = false;
};

// out[r, n] = sum over k of rows[r, k] * weight[e, n, k] + bias[e, n].
struct GroupedGemmParams {
  DType dtype;
  int64_t num_experts;
  int64_t n, k;
  const int32_t* expert_offsets;
  const void* rows;
  int64_t rows_stride, rows_k_stride;
  const int32_t* gather;   // or null
  int64_t gather_divisor;  // row r is rows[gather[r] / gather_divisor]
  ExpertMatrix weight;
  const void* bias;  // or null
  int64_t bias_expert_stride, bias_stride;
  void* out;
  int64_t out_stride;           // unit stride over n
  bool batch_invariant = true;  // on the CPU: a row of out does not depend on how many rows its expert has
};

// out[e, n, k] (+)= sum over the rows r of e of grad_out[r, n] * rows[r, k].
struct GroupedGemmWgradParams {
  DType dtype;
  int64_t num_experts;
  int64_t n, k;
  const int32_t* expert_offsets;
  const void* grad_out;
  int64_t grad_out_stride, grad_out_n_stride;
  const int32_t* grad_out_gather;  // or null
  const void* rows;
  int64_t rows_stride, rows_k_stride;
  const int32_t* gather;  // or null
  int64_t gather_divisor;
  void* out;
  int64_t out_expert_stride, out_n_stride, out_k_stride;
  bool accumulate;  // into a float32 (float64 for float64 data) out; else out has the data's dtype
};

}  // namespace moe
