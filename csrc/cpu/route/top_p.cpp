// The cut of route_top_p. Sums one after the other are all that it computes, which needs no instruction set.
#include "cpu/route/top_p.h"

namespace moe::cpu {

namespace {

template <class A>
void cut_row(const TopPParams& params, A* weights, int32_t* ids) {
  const A p = static_cast<A>(params.p);
  A sum = weights[0];
  int64_t kept = 1;
  while (kept < params.top_k && !(sum >= p) && weights[kept] != A(0)) sum += weights[kept++];
  const A divisor = sum + static_cast<A>(params.eps), scale = static_cast<A>(params.scale);
  // A row that chose nobody has weights of 0, and keeps them whatever eps is.
  for (int64_t k = 0; k < kept; ++k) {
    if (params.renormalize && ids[k] >= 0) weights[k] /= divisor;
    weights[k] *= scale;
  }
  for (int64_t k = kept; k < params.top_k; ++k) {
    weights[k] = A(0);
    ids[k] = -1;
  }
}

template <class A>
void cut(const TopPParams& params, const Parallel& parallel) {
  constexpr int64_t kSlotsPerRange = 16384;
  parallel.for_ranges(
      params.num_tokens, (kSlotsPerRange + params.top_k - 1) / params.top_k, [&](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; ++t) {
          cut_row(params, static_cast<A*>(params.topk_weights) + t * params.top_k, params.topk_ids + t * params.top_k);
        }
      });
}

}  // namespace

Status cut_at_top_p(const TopPParams& params, const Parallel& parallel) {
  if (params.num_tokens < 0 || params.top_k < 1) return Status::kInvalidArgument;
  if (params.dtype == DType::kFloat64) {
    cut<double>(params, parallel);
  } else {
    cut<float>(params, parallel);
  }
  return Status::kOk;
}

}  // namespace moe::cpu
