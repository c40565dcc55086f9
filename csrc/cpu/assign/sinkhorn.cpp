// exp(logits - row maximum) is computed once and stays in the result; an iteration is one pass over it. Sums run over
// chunks of tokens cut by sizes alone, so they do not depend on the number of threads.
#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/assign/assign.h"
#include "cpu/isa.h"
#include "cpu/scratch.h"

namespace moe::cpu {

namespace {

template <class A>
class Sinkhorn {
 public:
  Sinkhorn(const SinkhornParams& p, const Parallel& parallel)
      : p_(p),
        parallel_(parallel),
        table_(kernels()),
        chunk_(std::max<int64_t>({64, 16384 / p.num_experts, (p.num_tokens + 255) / 256})),
        chunks_((p.num_tokens + chunk_ - 1) / chunk_),
        memory_(static_cast<int64_t>(sizeof(A)) * (chunks_ * (p.num_experts + 1) + p.num_experts)) {}

  Status run() {
    if (memory_.data() == nullptr) return Status::kUnsupported;
    partials_ = static_cast<A*>(memory_.data());
    counts_ = partials_ + chunks_ * p_.num_experts;
    v_ = counts_ + chunks_;
    std::fill(v_, v_ + p_.num_experts, A(1));
    for_chunks([&](int64_t chunk, int64_t begin, int64_t end) {
      counts_[chunk] = static_cast<A>(table_.sinkhorn_exponentiate(p_, begin, end));
    });
    A rows = 0;
    for (int64_t c = 0; c < chunks_; ++c) rows += counts_[c];
    const A target = rows / static_cast<A>(p_.num_experts);

    bool goes_on = true;
    for (int64_t i = 0; goes_on && i < p_.max_iterations; ++i) {
      for_chunks([&](int64_t chunk, int64_t begin, int64_t end) {
        table_.sinkhorn_add_columns(p_, begin, end, v_, partials_ + chunk * p_.num_experts);
      });
      goes_on = update(target);
    }
    for_chunks([&](int64_t, int64_t begin, int64_t end) { table_.sinkhorn_scale(p_, begin, end, v_); });
    return Status::kOk;
  }

 private:
  template <class Body>
  void for_chunks(const Body& body) const {
    parallel_.for_each(
        chunks_, [&](int64_t chunk) { body(chunk, chunk * chunk_, std::min(p_.num_tokens, (chunk + 1) * chunk_)); });
  }

  // The new v; returns whether another one is to follow. The u of the last pass stays in force until the next one, or
  // that which scales, forms it again.
  bool update(A target) {
    constexpr A kLeastSum = A(kSinkhornLeastSum), kLeastFactor = A(kSinkhornLeastFactor);
    A* next = partials_;
    for (int64_t c = 1; c < chunks_; ++c) {
      const A* part = partials_ + c * p_.num_experts;
      for (int64_t e = 0; e < p_.num_experts; ++e) next[e] += part[e];
    }
    A change = 0, least = std::numeric_limits<A>::infinity();
    for (int64_t e = 0; e < p_.num_experts; ++e) {
      next[e] = target / std::max(next[e], kLeastSum);
      change += std::abs(next[e] - v_[e]) / v_[e];
      least = std::min(least, next[e]);
    }
    if (least < kLeastFactor) return false;
    std::copy(next, next + p_.num_experts, v_);
    return !(change / static_cast<A>(p_.num_experts) <= static_cast<A>(p_.tolerance));
  }

  const SinkhornParams& p_;
  const Parallel& parallel_;
  const KernelTable& table_;
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
