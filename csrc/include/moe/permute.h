// permute: a deterministic counting sort of the R = T*K slots by expert.
//
// Sorted rows are ordered by (expert, token, k), whatever the number of threads. Ids outside [0, num_experts) are
// sentinels: their slots get no row. slot = t*K + k.
#pragma once

#include "moe/types.h"

namespace moe {

// Which slots of an expert come first when it cannot take all of them.
enum class DropOrder : int32_t {
  kToken,   // the order of slots: token 0 with all its choices, then token 1, ...
  kChoice,  // every token's choice 0, then every token's choice 1, ... (GShard, Lepikhin et al. 2020)
};

struct PermuteParams {
  int64_t num_tokens;
  int64_t top_k;
  int64_t num_experts;
  const void* topk_ids;  // [T,K] contiguous, int32 or int64
  bool ids_are_int64;
  int32_t* expert_offsets;  // [E+1], exclusive prefix sum
  int32_t* row_to_slot;     // [R]; -1 at and past expert_offsets[E]
  int32_t* slot_to_row;     // [T,K]; -1 for sentinels and dropped slots
  // An expert gets at most this many rows, its first slots in drop_order; the others are dropped, as if their ids were
  // sentinels. Negative: no limit.
  int64_t capacity = -1;
  DropOrder drop_order = DropOrder::kToken;
  // A caller with buffers of fewer than R rows; more are an error, found on the device. Negative: R.
  int64_t max_rows = -1;
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
