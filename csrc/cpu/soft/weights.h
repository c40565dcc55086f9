// A block of the weights of soft_mix, in cache: what an ISA forms of it, on the calling thread.
#pragma once

#include <cstdint>

#include "moe/soft.h"

namespace moe::cpu {

// Tokens and slots of one sequence. All pointers are to the first token and slot of the block.
struct SoftWeights {
  int64_t sequence;
  int64_t token0, num_tokens;
  int64_t slot0, num_slots;
  // [num_tokens, num_slots], rounded to the dtype of values; null: not wanted.
  void* weights = nullptr;
  int64_t weights_stride = 0;
  // weights * (dots - deltas) in the dtype of logits; null: not wanted. Strides: num_slots of dots, those of all
  // logits.
  void* grad_logits = nullptr;
  const void* dots = nullptr;    // <grad_mixed, values> of each pair; float (double for double data)
  const void* deltas = nullptr;  // <grad_mixed, mixed> of each result, [B,R]: to the first of all
};

}  // namespace moe::cpu
