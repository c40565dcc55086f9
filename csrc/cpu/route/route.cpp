#include "cpu/route/route.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "cpu/isa.h"
#include "cpu/scratch.h"

namespace moe::cpu {

namespace {

// A range smaller than this many experts in all costs less than handing it to another thread.
constexpr int64_t kExpertsPerRange = 16384;

int64_t tokens_per_range(int64_t num_experts) { return (kExpertsPerRange + num_experts - 1) / num_experts; }

bool is_valid(int64_t num_tokens, int64_t num_experts, int64_t top_k) {
  return num_tokens >= 0 && num_experts >= 1 && top_k >= 1;
}

bool wants(const RouteStatistics& statistics) {
  return statistics.score_sums != nullptr || statistics.expert_counts != nullptr || statistics.z_sum != nullptr;
}

// Tokens cut by sizes alone into chunks, which are summed on their own and then in order: so the sums do not depend on
// the number of threads.
struct Chunks {
  int64_t count, tokens;

  Chunks(int64_t num_tokens, int64_t num_experts) {
    constexpr int64_t kMinTokens = 64, kMaxChunks = 256, kMaxCells = int64_t{1} << 24;
    const int64_t limit = std::clamp<int64_t>(kMaxCells / num_experts, 1, kMaxChunks);
    tokens = std::max(kMinTokens, (num_tokens + limit - 1) / limit);
    count = (num_tokens + tokens - 1) / tokens;
  }
};

// The sums of chunks, first those of the first chunk: E scores, one z, then the counts behind the sums of all chunks.
template <class A>
class Partials {
 public:
  Partials(const RouteParams& params, const Chunks& chunks)
      : params_(params), chunks_(chunks), memory_(chunks.count * bytes_per_chunk(params.num_experts)) {}

  static int64_t bytes_per_chunk(int64_t num_experts) {
    return (num_experts + 1) * static_cast<int64_t>(sizeof(A)) + num_experts * static_cast<int64_t>(sizeof(int32_t));
  }
  bool ok() const { return chunks_.count == 0 || memory_.data() != nullptr; }

  // Zeros for one chunk.
  RouteStatistics start(int64_t chunk) const {
    const int64_t num_experts = params_.num_experts;
    A* sums = scores(chunk);
    int32_t* counts = expert_counts(chunk);
    std::memset(sums, 0, static_cast<size_t>(num_experts + 1) * sizeof(A));
    std::memset(counts, 0, static_cast<size_t>(num_experts) * sizeof(int32_t));
    const RouteStatistics& wanted = params_.statistics;
    return {wanted.score_sums != nullptr ? sums : nullptr, wanted.expert_counts != nullptr ? counts : nullptr,
            wanted.z_sum != nullptr ? sums + num_experts : nullptr};
  }

  void finish() const {
    const RouteStatistics& wanted = params_.statistics;
    const int64_t num_experts = params_.num_experts;
    if (wanted.score_sums != nullptr) {
      add(static_cast<A*>(wanted.score_sums), num_experts, [&](int64_t c) { return scores(c); });
    }
    if (wanted.expert_counts != nullptr) {
      add(wanted.expert_counts, num_experts, [&](int64_t c) { return expert_counts(c); });
    }
    if (wanted.z_sum != nullptr) {
      add(static_cast<A*>(wanted.z_sum), 1, [&](int64_t c) { return scores(c) + num_experts; });
    }
  }

 private:
  A* scores(int64_t chunk) const { return static_cast<A*>(memory_.data()) + chunk * (params_.num_experts + 1); }
  int32_t* expert_counts(int64_t chunk) const {
    return reinterpret_cast<int32_t*>(scores(chunks_.count)) + chunk * params_.num_experts;
  }

  template <class N, class Row>
  void add(N* total, int64_t size, const Row& row) const {
    std::fill(total, total + size, N(0));
    for (int64_t c = 0; c < chunks_.count; ++c) {
      const N* part = row(c);
      for (int64_t i = 0; i < size; ++i) total[i] += part[i];
    }
  }

  const RouteParams& params_;
  const Chunks chunks_;
  const Workspace memory_;
};

// body(params, begin, end) for all tokens, in parallel.
template <class A, class Body>
Status for_chunks(const RouteParams& params, const Parallel& parallel, const Body& body) {
  const Chunks chunks(params.num_tokens, params.num_experts);
  const Partials<A> partials(params, chunks);
  if (!partials.ok()) return Status::kUnsupported;
  parallel.for_each(chunks.count, [&](int64_t chunk) {
    RouteParams p = params;
    p.statistics = partials.start(chunk);
    body(p, chunk * chunks.tokens, std::min(params.num_tokens, (chunk + 1) * chunks.tokens));
  });
  partials.finish();
  return Status::kOk;
}

}  // namespace

Status route_forward(const RouteParams& params, const Parallel& parallel, int64_t* bad_token) {
  *bad_token = -1;
  if (!is_valid(params.num_tokens, params.num_experts, params.top_k) || params.top_k > params.num_experts) {
    return Status::kInvalidArgument;
  }
  if (params.statistics.score_sums != nullptr && params.rule.score == Score::kNone) return Status::kInvalidArgument;
  std::atomic<int64_t> first_bad{params.num_tokens};
  std::atomic<bool> out_of_memory{false};
  const KernelTable& table = kernels();
  const auto route = [&](const RouteParams& p, int64_t begin, int64_t end) {
    const int64_t result = table.route_forward(p, begin, end);
    if (result < -1) out_of_memory = true;
    if (result < 0) return;
    int64_t seen = first_bad;
    while (result < seen && !first_bad.compare_exchange_weak(seen, result)) {
    }
  };
  Status status = Status::kOk;
  if (!wants(params.statistics)) {
    parallel.for_ranges(params.num_tokens, tokens_per_range(params.num_experts),
                        [&](int64_t begin, int64_t end) { route(params, begin, end); });
  } else if (params.dtype == DType::kFloat64) {
    status = for_chunks<double>(params, parallel, route);
  } else {
    status = for_chunks<float>(params, parallel, route);
  }
  if (out_of_memory || status != Status::kOk) return Status::kUnsupported;
  if (first_bad == params.num_tokens) return Status::kOk;
  *bad_token = first_bad;
  return Status::kInvalidArgument;
}

Status route_backward(const RouteBackwardParams& params, const Parallel& parallel) {
  if (!is_valid(params.num_tokens, params.num_experts, params.top_k)) return Status::kInvalidArgument;
  if (params.grad_score_sums != nullptr && params.rule.score == Score::kNone) return Status::kInvalidArgument;
  const KernelTable& table = kernels();
  parallel.for_ranges(params.num_tokens, tokens_per_range(params.num_experts),
                      [&](int64_t begin, int64_t end) { table.route_backward(params, begin, end); });
  return Status::kOk;
}

}  // namespace moe::cpu
