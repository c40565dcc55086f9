// K = exp(logits - row maximum) is computed once and stays in the result; an iteration is one pass over it. Sums run
// over a fixed number of lanes and over chunks of tokens cut by sizes alone, so they do not depend on the number of
// threads.
#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/assign/assign.h"
#include "cpu/assign/order.h"
#include "cpu/scratch.h"

namespace moe::cpu {

namespace {

using assigning::kInfinity;

constexpr int64_t kLanes = 16;
// Below it a column is taken for one that nobody can reach: its factor would overflow.
constexpr double kLeastSum = 1e-30;

template <class A>
A sanitized(A x) {
  if (x != x) return -kInfinity<A>;
  return x == kInfinity<A> ? A(std::numeric_limits<float>::max()) : x;
}

template <class A>
A dot(const A* __restrict a, const A* __restrict b, int64_t count) {
  A lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int64_t l = 0; l < kLanes; ++l) lanes[l] += a[i + l] * b[i + l];
  }
  for (; i < count; ++i) lanes[i % kLanes] += a[i] * b[i];
  A sum = 0;
  for (int64_t l = 0; l < kLanes; ++l) sum += lanes[l];
  return sum;
}

template <class A>
class Sinkhorn {
 public:
  Sinkhorn(const SinkhornParams& p, const Parallel& parallel)
      : p_(p),
        parallel_(parallel),
        chunk_(std::max<int64_t>({64, 16384 / p.num_experts, (p.num_tokens + 255) / 256})),
        chunks_((p.num_tokens + chunk_ - 1) / chunk_),
        memory_(static_cast<int64_t>(sizeof(A)) * (chunks_ * (p.num_experts + 1) + p.num_experts)) {}

  Status run() {
    if (memory_.data() == nullptr) return Status::kUnsupported;
    partials_ = static_cast<A*>(memory_.data());
    counts_ = partials_ + chunks_ * p_.num_experts;
    v_ = counts_ + chunks_;
    std::fill(v_, v_ + p_.num_experts, A(1));
    for_chunks([&](int64_t chunk, int64_t begin, int64_t end) { counts_[chunk] = exponentiate(begin, end); });
    A rows = 0;
    for (int64_t c = 0; c < chunks_; ++c) rows += counts_[c];
    const A target = rows / static_cast<A>(p_.num_experts);

    for (int64_t i = 0; i < p_.max_iterations; ++i) {
      for_chunks([&](int64_t chunk, int64_t begin, int64_t end) { add_columns(chunk, begin, end); });
      if (update(target) <= static_cast<A>(p_.tolerance)) break;
    }
    for_chunks([&](int64_t, int64_t begin, int64_t end) { scale(begin, end); });
    return Status::kOk;
  }

 private:
  template <class Body>
  void for_chunks(const Body& body) const {
    parallel_.for_each(
        chunks_, [&](int64_t chunk) { body(chunk, chunk * chunk_, std::min(p_.num_tokens, (chunk + 1) * chunk_)); });
  }

  A* row(int64_t token) const { return static_cast<A*>(p_.balanced) + token * p_.num_experts; }

  // Returns the number of rows with anything in them.
  A exponentiate(int64_t begin, int64_t end) const {
    A alive = 0;
    for (int64_t t = begin; t < end; ++t) {
      const A* logits = static_cast<const A*>(p_.logits) + t * p_.logits_stride;
      A* own = row(t);
      A high = -kInfinity<A>;
      for (int64_t e = 0; e < p_.num_experts; ++e) high = std::max(high, sanitized(logits[e]));
      if (high == -kInfinity<A>) {
        std::fill(own, own + p_.num_experts, A(0));
        continue;
      }
      for (int64_t e = 0; e < p_.num_experts; ++e) own[e] = std::exp(sanitized(logits[e]) - high);
      alive += 1;
    }
    return alive;
  }

  // What makes a row sum to 1; 0 for a row of zeros, or one that only reaches columns without a factor.
  A factor(const A* own) const {
    const A sum = dot(own, v_, p_.num_experts);
    return sum > 0 ? 1 / sum : A(0);
  }

  void add_columns(int64_t chunk, int64_t begin, int64_t end) const {
    A* __restrict sums = partials_ + chunk * p_.num_experts;
    std::fill(sums, sums + p_.num_experts, A(0));
    for (int64_t t = begin; t < end; ++t) {
      const A* __restrict own = row(t);
      const A u = factor(own);
      for (int64_t e = 0; e < p_.num_experts; ++e) sums[e] += own[e] * u;
    }
  }

  // The new v; returns by how much it differs. The u of the last pass stays in force until scale forms it again.
  A update(A target) {
    A* sums = partials_;
    for (int64_t c = 1; c < chunks_; ++c) {
      const A* part = partials_ + c * p_.num_experts;
      for (int64_t e = 0; e < p_.num_experts; ++e) sums[e] += part[e];
    }
    A change = 0;
    for (int64_t e = 0; e < p_.num_experts; ++e) {
      const A next = target / std::max(sums[e], A(kLeastSum));
      change += std::abs(next - v_[e]) / v_[e];
      v_[e] = next;
    }
    return change / static_cast<A>(p_.num_experts);
  }

  void scale(int64_t begin, int64_t end) const {
    for (int64_t t = begin; t < end; ++t) {
      A* __restrict own = row(t);
      const A u = factor(own);
      for (int64_t e = 0; e < p_.num_experts; ++e) own[e] = own[e] * u * v_[e];
    }
  }

  const SinkhornParams& p_;
  const Parallel& parallel_;
  const int64_t chunk_, chunks_;  // tokens of a chunk; chunks
  const Workspace memory_;
  A* partials_ = nullptr;  // [chunks, E]: sums of columns
  A* counts_ = nullptr;    // [chunks]: rows with anything in them
  A* v_ = nullptr;         // [E]
};

}  // namespace

Status sinkhorn(const SinkhornParams& params, const Parallel& parallel) {
  if (params.num_tokens < 0 || params.num_experts < 1 || params.max_iterations < 0) return Status::kInvalidArgument;
  if (params.num_tokens == 0) return Status::kOk;
  return params.dtype == DType::kFloat64 ? Sinkhorn<double>(params, parallel).run()
                                         : Sinkhorn<float>(params, parallel).run();
}

}  // namespace moe::cpu
