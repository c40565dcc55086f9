// route_top_p: the fewest best experts of a token whose scores reach p (Huang et al. 2024, arXiv:2403.07652).
//
// The best top_k experts as route has them, each row cut off. Scores are added one after the other, best first, in the
// type of the weights. The cut is after the first expert with which the sum is at least p. An expert whose score is 0
// is never chosen, save as the first; NaN never reaches anything. Where the sum stays below p, all of top_k with a
// score above 0 are left.
#pragma once

#include "moe/types.h"

namespace moe {

struct TopPParams {
  DType dtype;  // kFloat32 or kFloat64: of the weights
  int64_t num_tokens;
  int64_t top_k;
  double p;  // infinity: never reached
  bool renormalize;
  double eps;
  double scale;
  void* topk_weights;  // [T,K] contiguous: scores in, larger first; weights out, 0 past the cut
  int32_t* topk_ids;   // [T,K] contiguous; -1 past the cut
};

}  // namespace moe
