// slot_positions: which place a slot has among the slots of its expert, and how many slots an expert has.
//
// Tokens are cut into groups of group_size consecutive ones, the last of which may be shorter; each group counts for
// itself. Ids outside [0, num_experts) are sentinels: they get no place and take none. slot = t*K + k.
#pragma once

#include "moe/permute.h"
#include "moe/types.h"

namespace moe {

// The slots of a group are visited in an order, and a slot's place is the number of slots of its expert before it.
// Without priorities that order is drop_order. With a priority for each token, tokens are visited by falling priority
// wherever drop_order visits them by number. With one for each slot, slots are visited by falling priority. What has
// equal priority stays in drop_order. NaN counts as -inf.
struct SlotPositionsParams {
  int64_t num_tokens;
  int64_t top_k;
  int64_t num_experts;
  const void* topk_ids;  // [T,K] contiguous, int32 or int64
  bool ids_are_int64;
  int64_t group_size;  // at least 1
  int64_t num_groups;  // 1, or the groups that the tokens make
  DropOrder drop_order;
  const float* priority;  // [T], or [T,K] with priority_of_slots, contiguous; null: none
  bool priority_of_slots;
  int32_t* positions;  // [T,K], -1 for sentinels; null: only the counts are wanted
  int32_t* counts;     // [num_groups, E]
};

}  // namespace moe
