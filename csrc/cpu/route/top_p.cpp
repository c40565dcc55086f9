// route_top_p: experts in order of their scores, and the cut. Most tokens reach p within a few experts, and route is
// fastest where it chooses few: so all tokens get those first, and the ones that want more are routed again for four
// times as many, and so on, which begins with the same bits.
#include "cpu/route/top_p.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>

#include "cpu/isa.h"

namespace moe::cpu {

namespace {

constexpr int64_t kFirst = 16;                  // choices that route makes for a tile of rows at once
constexpr int64_t kMostFew = 256;               // choices that are worth another try before all of them
constexpr int64_t kTokens = 256;                // routed at a time
constexpr int64_t kChoices = kTokens * kFirst;  // that are made at a time
constexpr int64_t kGrain = 16384;               // experts in all that are worth another thread

template <class A>
class Cut {
 public:
  Cut(const RouteParams& route, const TopPParams& params)
      : route_(route), params_(params), table_(kernels()), p_(static_cast<A>(params.p)) {}

  // Tokens [begin, end), whose best `few` are looked at first. What table.route_forward returns.
  int64_t run(int64_t begin, int64_t end, int64_t few = kFirst) const {
    const bool all = params_.top_k <= few || few > kMostFew || !std::isfinite(p_);
    const int64_t step = all ? kTokens : kChoices / few;
    for (int64_t t = begin; t < end; t += step) {
      const int64_t last = std::min(t + step, end);
      const int64_t result = all ? in_full(t, last) : first_few(t, last, few);
      if (result != -1) return result;
    }
    return -1;
  }

 private:
  struct Kept {
    int64_t count;
    A sum;
    bool is_final;  // no further expert would be kept
  };

  // Of a row of top_k scores.
  Kept kept_of(const A* scores, int64_t top_k) const {
    Kept kept = {1, scores[0], scores[0] >= p_};
    while (!kept.is_final && kept.count < top_k) {
      if (scores[kept.count] == A(0)) return {kept.count, kept.sum, true};
      kept.sum += scores[kept.count++];
      kept.is_final = kept.sum >= p_;
    }
    return kept;
  }

  A* weights_of(int64_t token) const { return static_cast<A*>(params_.topk_weights) + token * params_.top_k; }
  int32_t* ids_of(int64_t token) const { return params_.topk_ids + token * params_.top_k; }

  // The output row, of which the first kept.count scores and ids are there.
  void finish(int64_t token, const Kept& kept) const {
    A* weights = weights_of(token);
    int32_t* ids = ids_of(token);
    const A divisor = kept.sum + static_cast<A>(params_.eps), scale = static_cast<A>(params_.scale);
    for (int64_t k = 0; k < kept.count; ++k) {
      // A row that chose nobody has weights of 0, and keeps them whatever eps is.
      if (params_.renormalize && ids[k] >= 0) weights[k] /= divisor;
      weights[k] *= scale;
    }
    std::fill(weights + kept.count, weights + params_.top_k, A(0));
    std::fill(ids + kept.count, ids + params_.top_k, -1);
  }

  int64_t in_full(int64_t begin, int64_t end) const {
    const int64_t result = table_.route_forward(route_, begin, end);
    if (result != -1) return result;
    for (int64_t t = begin; t < end; ++t) finish(t, kept_of(weights_of(t), params_.top_k));
    return -1;
  }

  int64_t first_few(int64_t begin, int64_t end, int64_t few) const {
    A scores[kChoices];
    int32_t ids[kChoices];
    RouteParams route = route_;
    route.num_tokens = end - begin;
    route.top_k = few;
    route.logits = static_cast<const char*>(route_.logits) + begin * route_.logits_stride * size_of(route_.dtype);
    route.topk_weights = scores;
    route.topk_ids = ids;
    const int64_t result = table_.route_forward(route, 0, end - begin);
    if (result != -1) return result >= 0 ? begin + result : result;
    for (int64_t t = begin; t < end; ++t) {
      const A* row = scores + (t - begin) * few;
      const Kept kept = kept_of(row, few);
      if (!kept.is_final) {
        // Neighbours that want more are routed together.
        int64_t last = t + 1;
        while (last < end && !kept_of(scores + (last - begin) * few, few).is_final) ++last;
        const int64_t again = run(t, last, 4 * few);
        if (again != -1) return again;
        t = last - 1;
        continue;
      }
      std::memcpy(weights_of(t), row, static_cast<size_t>(kept.count) * sizeof(A));
      std::memcpy(ids_of(t), ids + (t - begin) * few, static_cast<size_t>(kept.count) * sizeof(int32_t));
      finish(t, kept);
    }
    return -1;
  }

  const RouteParams& route_;
  const TopPParams& params_;
  const KernelTable& table_;
  const A p_;
};

template <class A>
int64_t run(const RouteParams& route, const TopPParams& params, const Parallel& parallel) {
  std::atomic<int64_t> first_bad{params.num_tokens};
  std::atomic<bool> out_of_memory{false};
  const Cut<A> cut(route, params);
  parallel.for_ranges(params.num_tokens, (kGrain + route.num_experts - 1) / route.num_experts,
                      [&](int64_t begin, int64_t end) {
                        const int64_t result = cut.run(begin, end);
                        if (result < -1) out_of_memory = true;
                        if (result < 0) return;
                        int64_t seen = first_bad;
                        while (result < seen && !first_bad.compare_exchange_weak(seen, result)) {
                        }
                      });
  if (out_of_memory) return -2;
  return first_bad < params.num_tokens ? first_bad.load() : -1;
}

}  // namespace

Status route_top_p(const RouteParams& route, const TopPParams& params, const Parallel& parallel, int64_t* bad_token) {
  *bad_token = -1;
  if (params.num_tokens < 0 || params.top_k < 1 || params.top_k > route.num_experts || route.top_k != params.top_k ||
      route.num_tokens != params.num_tokens) {
    return Status::kInvalidArgument;
  }
  const int64_t result =
      params.dtype == DType::kFloat64 ? run<double>(route, params, parallel) : run<float>(route, params, parallel);
  if (result < -1) return Status::kUnsupported;
  *bad_token = result;
  return result == -1 ? Status::kOk : Status::kInvalidArgument;
}

}  // namespace moe::cpu
