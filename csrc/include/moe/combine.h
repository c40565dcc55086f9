// combine: y[t] = sum over k = 0..K-1 of topk_weights[t,k] * rows[slot_to_row[t,k]], in float32 (float64 for float64
// rows), rounded once. Slots without a row (-1) contribute nothing. Its gradients, and the unweighted sum that is the
// adjoint of gather_rows, are the same walk.
#pragma once

#include "moe/types.h"

namespace moe {

struct CombineParams {
  DType dtype;
  int64_t num_tokens;
  int64_t top_k;
  int64_t hidden_size;
  const void* rows;  // [R,H], unit stride over H
  int64_t rows_stride;
  const void* topk_weights;  // [T,K] contiguous, float (double for float64 rows); null: all ones
  const int32_t* slot_to_row;
  void* out;  // [T,H], unit stride over H
  int64_t out_stride;
};

// grad_rows[slot_to_row[t,k]] = topk_weights[t,k] * grad_y[t]; grad_topk_weights[t,k] = <grad_y[t], rows[...]>.
// grad_rows past the last valid row is the caller's to clear. Either output may be null.
struct CombineBackwardParams {
  DType dtype;
  int64_t num_tokens;
  int64_t top_k;
  int64_t hidden_size;
  const void* grad_y;  // [T,H], unit stride over H
  int64_t grad_y_stride;
  const void* rows;
  int64_t rows_stride;
  const void* topk_weights;
  const int32_t* slot_to_row;
  void* grad_rows;  // [R,H] contiguous
  void* grad_topk_weights;
};

// out[e] = sum of rows[expert_offsets[e] .. expert_offsets[e+1]) in float32, rounded once; in row order on the CPU, on
// others in an order that depends on the number of rows alone. With a gather, row r is
// topk_weights[row_to_slot[r]] * rows[row_to_slot[r] / top_k].
struct SegmentSumParams {
  DType dtype;
  int64_t num_experts;
  int64_t width;
  const void* rows;  // [R,N], unit stride over N
  int64_t rows_stride;
  const int32_t* expert_offsets;
  void* out;  // [E,N] contiguous
  const int32_t* row_to_slot = nullptr;
  int64_t top_k = 1;
  const void* topk_weights = nullptr;  // with a gather; null: all ones
};

}  // namespace moe
