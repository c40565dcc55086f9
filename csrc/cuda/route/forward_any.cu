// route for rows of any size and every dtype: logits [T,E] -> weights, ids [T,K]. One warp a block, one row at a time.
// The keys of a row stand in shared memory, or in the workspace where that is too small; expert i belongs to lane
// i % 32, so that sums are those of csrc/cuda/route/forward.cu and of the CPU. A round of the selection costs one
// maximum over the lanes, and the winner's look at its own keys.
#include "cuda/common/launch_kernel.cuh"
#include "cuda/route/fail.cuh"
#include "cuda/route/forward.h"
#include "cuda/route/groups.cuh"
#include "cuda/route/row.cuh"

namespace moe::cuda::routing {

namespace {

using Warp = Lanes<32>;

struct Layout {
  int64_t num_blocks;
  int64_t tokens_per_block;  // with statistics a chunk
  int64_t bytes;             // of keys for a block
  bool in_shared;
  bool group_wise;
};

Layout layout_of(const RouteParams& p, const Chunks& chunks) {
  constexpr int64_t kMaxShared = 48 * 1024, kMaxWorkspace = int64_t{64} << 20, kMaxBlocks = 4096;
  Layout layout = {};
  layout.group_wise = p.num_groups > 1 && p.topk_groups < p.num_groups;
  const int64_t key_bytes = p.dtype == DType::kFloat64 ? 8 : 4;
  layout.bytes = (p.num_experts + (layout.group_wise ? p.num_groups : 0)) * key_bytes;
  layout.in_shared = layout.bytes <= kMaxShared;
  if (chunks.count > 0) {
    layout.num_blocks = chunks.count;
    layout.tokens_per_block = chunks.tokens;
    return layout;
  }
  const int64_t limit = layout.in_shared ? INT32_MAX : std::clamp<int64_t>(kMaxWorkspace / layout.bytes, 1, kMaxBlocks);
  layout.tokens_per_block = (p.num_tokens + limit - 1) / limit;
  layout.num_blocks = p.num_tokens == 0 ? 0 : (p.num_tokens + layout.tokens_per_block - 1) / layout.tokens_per_block;
  return layout;
}

template <class A>
class RowOfAnySize {
 public:
  __device__ RowOfAnySize(const RouteParams& p, const Groups& groups, bool group_wise, key_t<A>* keys)
      : p_(p), groups_(groups), group_wise_(group_wise), keys_(keys) {}

  __device__ void run(int64_t token, bool first_of_chunk) {
    first_logit_ = token * p_.logits_stride;
    if (!look()) {
      Warp::for_each(p_.top_k, [&](int64_t k) {
        static_cast<A*>(p_.topk_weights)[token * p_.top_k + k] = 0;
        p_.topk_ids[token * p_.top_k + k] = -1;
      });
      if (first_of_chunk) clear_statistics();
      return;
    }
    if (is_softmax()) softmax_ = row_softmax();
    Warp::for_each(p_.num_experts, [&](int64_t i) {
      keys_[i] = rank(score(logit(i)), p_.bias != nullptr ? static_cast<A>(p_.bias[i]) : A(0));
    });
    __syncwarp();
    if (group_wise_) keep_best_groups();
    int32_t* ids = p_.topk_ids + token * p_.top_k;
    select(ids);
    __syncwarp();
    weigh(ids, static_cast<A*>(p_.topk_weights) + token * p_.top_k);
    if (first_of_chunk) clear_statistics();
    add_statistics(ids);
    __syncwarp();
  }

  __device__ void clear_statistics() {
    const RouteStatistics& s = p_.statistics;
    if (s.score_sums != nullptr) Warp::for_each(p_.num_experts, [&](int64_t i) { score_sums()[i] = 0; });
    if (s.expert_counts != nullptr) Warp::for_each(p_.num_experts, [&](int64_t i) { expert_counts()[i] = 0; });
    if (s.z_sum != nullptr && threadIdx.x == 0) *z_sum() = 0;
    __syncwarp();
  }

 private:
  __device__ bool is_softmax() const { return p_.rule.score == Score::kSoftmax && !p_.rule.softmax_after; }
  __device__ A* score_sums() const { return static_cast<A*>(p_.statistics.score_sums) + blockIdx.x * p_.num_experts; }
  __device__ int32_t* expert_counts() const { return p_.statistics.expert_counts + blockIdx.x * p_.num_experts; }
  __device__ A* z_sum() const { return static_cast<A*>(p_.statistics.z_sum) + blockIdx.x; }

  __device__ A raw_logit(int64_t i) const { return load_logit<A>(p_.dtype, p_.logits, first_logit_ + i); }
  __device__ A logit(int64_t i) const {
    const A z = raw_logit(i);
    return p_.rule.nonfinite == NonFinite::kPropagate ? z : sanitized(z);
  }

  // Whether there is something to choose.
  __device__ bool look() const {
    if (p_.rule.nonfinite == NonFinite::kPropagate) return true;
    bool bad = false, alive = false;
    Warp::for_each(p_.num_experts, [&](int64_t i) {
      const A z = raw_logit(i);
      bad |= !(z < infinity(A()));
      alive |= sanitized(z) > -infinity(A());
    });
    bad = Warp::any(bad), alive = Warp::any(alive);
    if (p_.rule.nonfinite == NonFinite::kError && (bad || !alive)) fail_on_nonfinite();
    return alive;
  }

  __device__ Softmax<A> row_softmax() const {
    return Softmax<A>::template of<32>(p_.num_experts, [&](int64_t i) { return logit(i); });
  }
  __device__ A score(A z) const { return is_softmax() ? softmax_.probability(z) : score_of(p_.rule.score, z); }

  __device__ void keep_best_groups() {
    key_t<A>* group_keys = keys_ + p_.num_experts;
    score_groups<A>(groups_, keys_, group_keys);
    __syncwarp();
    const Place<A> last_kept = last_kept_group<A>(groups_, group_keys);
    Warp::for_each(p_.num_experts, [&](int64_t i) {
      const int32_t group = static_cast<int32_t>(i) / groups_.size;
      keys_[i] = filtered<A>(groups_, last_kept, group_keys, group, keys_[i]);
    });
  }

  // The first of this lane's keys.
  __device__ Place<A> best_of_lane() const {
    Place<A> best = Place<A>::last();
    Warp::for_each(p_.num_experts, [&](int64_t i) {
      if (keys_[i] > best.key) best = {keys_[i], static_cast<int32_t>(i)};
    });
    return best;
  }

  __device__ void select(int32_t* ids) {
    Place<A> mine = best_of_lane();
    for (int64_t k = 0; k < p_.top_k; ++k) {
      const Place<A> winner = first_of(mine, 32);
      if (winner.index % 32 != static_cast<int32_t>(threadIdx.x)) continue;
      ids[k] = winner.index;
      keys_[winner.index] = KeyOf<A>::kLowest;
      mine = best_of_lane();
    }
  }

  // term(k) of k = 0 .. top_k - 1, added one after the other.
  template <class Term>
  __device__ A sum_in_order(const Term& term) const {
    A sum = 0;
    for (int64_t first = 0; first < p_.top_k; first += 32) {
      const int64_t k = first + threadIdx.x;
      const A mine = k < p_.top_k ? term(k) : A(0);
      const int count = static_cast<int>(p_.top_k - first < 32 ? p_.top_k - first : 32);
      for (int j = 0; j < count; ++j) sum += Warp::from(mine, j);
    }
    return sum;
  }

  __device__ void weigh(const int32_t* ids, A* weights) const {
    const auto weight = [&](int64_t k) -> A& { return weights[k]; };  // lane k % 32 alone touches it
    Warp::for_each(p_.top_k, [&](int64_t k) { weight(k) = score(logit(ids[k])); });
    if (p_.rule.softmax_after) {
      A maximum = -infinity(A());
      Warp::for_each(p_.top_k, [&](int64_t k) { maximum = fmax(maximum, weight(k)); });
      maximum = Warp::maximum(maximum);
      Warp::for_each(p_.top_k, [&](int64_t k) { weight(k) = exp_below(weight(k) - maximum); });
      const A sum = sum_in_order(weight);
      Warp::for_each(p_.top_k, [&](int64_t k) { weight(k) /= sum; });
    }
    if (p_.rule.renormalize) {
      const A sum = sum_in_order(weight) + static_cast<A>(p_.rule.eps);
      Warp::for_each(p_.top_k, [&](int64_t k) { weight(k) /= sum; });
    }
    Warp::for_each(p_.top_k, [&](int64_t k) { weight(k) *= static_cast<A>(p_.rule.scale); });
  }

  // Each lane adds to what it owns of the chunk's sums.
  __device__ void add_statistics(const int32_t* ids) {
    const RouteStatistics& s = p_.statistics;
    if (s.expert_counts != nullptr) Warp::for_each(p_.top_k, [&](int64_t k) { ++expert_counts()[ids[k]]; });
    if (s.score_sums == nullptr && s.z_sum == nullptr) return;
    const bool elementwise = p_.rule.score == Score::kSigmoid || p_.rule.score == Score::kSqrtSoftplus;
    if (s.score_sums != nullptr && elementwise) {
      A sum = 0;
      Warp::for_each(p_.num_experts, [&](int64_t i) { sum += score(logit(i)); });
      sum = at_least_tiny(Warp::sum(sum));
      Warp::for_each(p_.num_experts, [&](int64_t i) { score_sums()[i] += score(logit(i)) / sum; });
    }
    if (!is_softmax()) softmax_ = row_softmax();
    if (s.score_sums != nullptr && !elementwise) {
      Warp::for_each(p_.num_experts, [&](int64_t i) { score_sums()[i] += softmax_.probability(logit(i)); });
    }
    if (s.z_sum != nullptr && threadIdx.x == 0) *z_sum() += softmax_.z_square(p_.rule.nonfinite);
  }

  const RouteParams& p_;
  const Groups& groups_;
  const bool group_wise_;
  key_t<A>* keys_;
  int64_t first_logit_ = 0;
  Softmax<A> softmax_;
};

template <class A>
__global__ void __launch_bounds__(32)
    route_forward_any_kernel(const RouteParams p, const Layout layout, const Groups groups, char* workspace) {
  extern __shared__ int64_t shared_keys[];
  void* memory = layout.in_shared ? static_cast<void*>(shared_keys) : workspace + blockIdx.x * layout.bytes;
  RowOfAnySize<A> row(p, groups, layout.group_wise, static_cast<key_t<A>*>(memory));
  const int64_t first = blockIdx.x * layout.tokens_per_block;
  const int64_t rest = p.num_tokens - first;
  const int64_t tokens = rest < layout.tokens_per_block ? rest : layout.tokens_per_block;
  if (tokens <= 0) row.clear_statistics();
  for (int64_t i = 0; i < tokens; ++i) row.run(first + i, i == 0);
}

int64_t keys_bytes(const Layout& layout) { return layout.in_shared ? 0 : layout.num_blocks * layout.bytes; }

}  // namespace

int64_t any_workspace_bytes(const RouteParams& p, const Chunks& chunks) { return keys_bytes(layout_of(p, chunks)); }

Outcome forward_any(const RouteParams& p, const Chunks& chunks, void* workspace, Stream stream) {
  const Layout layout = layout_of(p, chunks);
  const auto kernel = p.dtype == DType::kFloat64 ? route_forward_any_kernel<double> : route_forward_any_kernel<float>;
  return launch("route_forward_any", kernel, dim3(static_cast<uint32_t>(layout.num_blocks)), dim3(32),
                static_cast<size_t>(layout.in_shared ? layout.bytes : 0), stream, p, layout, Groups::of(p),
                static_cast<char*>(workspace));
}

}  // namespace moe::cuda::routing
