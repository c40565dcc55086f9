// combine, its backward and segment_sum on CUDA. Contract: moe/combine.h. Entries of slot_to_row that are negative or
// at and past num_rows contribute nothing.
#pragma once

#include "cuda/launch.h"
#include "moe/combine.h"

namespace moe::cuda {

// What the input gradient of fused_experts needs beyond a plain combine, in the same walk over the rows.
struct CombineExtras {
  int64_t num_rows = 0;  // [R,H]; rows at and past it do not exist
  // dots[t,k] (+)= <others[t], rows[slot_to_row[t,k]]>, 0 for slots without a row; null: not wanted.
  const void* others = nullptr;  // [T,H], unit stride over H
  int64_t others_stride = 0;
  void* dots = nullptr;  // [T,K], float (double for float64 rows)
  bool accumulate_dots = false;
  // sums[t,k] = sum over j of partials[slot_to_row[t,k], j] in order of j, 0 for slots without a row, or with one at or
  // past expert_offsets[num_experts]; null: not wanted.
  const void* partials = nullptr;  // [R, num_partials], float (double for float64 rows)
  int64_t num_partials = 0;
  void* sums = nullptr;  // [T,K]
  // sums also gets <others[t], bias[expert of the row]> over others_size columns; null: not wanted.
  const void* bias = nullptr;  // [E,H] in the dtype of rows
  int64_t bias_expert_stride = 0, bias_stride = 0;
  int64_t others_size = 0;
  const int32_t* expert_offsets = nullptr;  // with sums
  int64_t num_experts = 0;
};

// params.out may be null when only dots or sums are wanted.
Outcome combine_forward(const CombineParams& params, const CombineExtras& extras, Stream stream);

// Every row of grad_rows is written: those without a slot with zeros. A row that has two slots takes the gradient of
// the later one. The workspace (only with grad_rows) holds the inverse of slot_to_row.
int64_t combine_backward_workspace_bytes(int64_t num_rows);
Outcome combine_backward(const CombineBackwardParams& params, int64_t num_rows, void* workspace, Stream stream);

// Rows are summed in order, in at most 8 runs whose sums are then added in order; how they are cut depends on an
// expert's number of rows alone.
struct SegmentSumLaunch {
  SegmentSumParams params;
  int64_t num_rows;    // offsets outside 0 .. num_rows are clamped
  int64_t num_tokens;  // with a gather: the rows of params.rows
};
Outcome segment_sum(const SegmentSumLaunch& launch, Stream stream);

// rows[r, :] *= topk_weights[row_to_slot[r]] for the rows below expert_offsets[num_experts], rounded once.
struct ScaleRowsParams {
  DType dtype;
  int64_t num_rows, width, num_experts, num_slots;
  void* rows;  // [R, width] contiguous
  const int32_t* expert_offsets;
  const int32_t* row_to_slot;
  const void* topk_weights;
};
Outcome scale_rows(const ScaleRowsParams& params, Stream stream);

}  // namespace moe::cuda
