// permute: a deterministic counting sort of the R = T*K slots by expert.
//
// Sorted rows are ordered by (expert, token, k), whatever the number of threads. Ids outside [0, num_experts) are
// sentinels: their slots get no row. slot = t*K + k.
#pragma once

#include "moe/types.h"

namespace moe {

struct PermuteParams {
  int64_t num_tokens;
  int64_t top_k;
  int64_t num_experts;
  const void* topk_ids;  // [T,K] contiguous, int32 or int64
  bool ids_are_int64;
  int32_t* expert_offsets;  // [E+1], exclusive prefix sum
  int32_t* row_to_slot;     // [R]; -1 at and past expert_offsets[E]
  int32_t* slot_to_row;     // [T,K]; -1 for sentinels
};

// rows[r] = x[row_to_slot[r] / top_k] for r < num_valid, zeros after. A byte copy: any dtype.
struct GatherRowsParams {
  int64_t num_rows;
  int64_t num_valid;
  int64_t top_k;
  int64_t row_bytes;
  const void* x;  // rows of row_bytes, x_stride_bytes apart
  int64_t x_stride_bytes;
  const int32_t* row_to_slot;
  void* rows;  // [R, row_bytes] contiguous
};

}  // namespace moe
