// Sums over tokens without atomics: the tokens are cut into chunks by sizes alone, each chunk is summed by one block
// in the order of the tokens, and the sums of the chunks are added in one order.
#pragma once

#include <algorithm>

#include "cuda/launch.h"
#include "moe/route.h"

namespace moe::cuda::routing {

struct Chunks {
  int64_t count = 0;   // 0: no statistics are wanted
  int64_t tokens = 0;  // of a chunk; the last may hold fewer. A multiple of kStep
  static constexpr int64_t kStep = 32;
};

inline bool wants_statistics(const RouteStatistics& statistics) {
  return statistics.score_sums != nullptr || statistics.expert_counts != nullptr || statistics.z_sum != nullptr;
}

inline Chunks chunks_of(const RouteParams& p) {
  if (!wants_statistics(p.statistics)) return {};
  // Enough blocks for any device; then what bounds the second pass, and the workspace where there are many experts.
  constexpr int64_t kMaxChunks = 4096, kMaxPartials = int64_t{1} << 24;
  const int64_t limit = std::max<int64_t>(1, std::min(kMaxChunks, kMaxPartials / p.num_experts));
  const int64_t tokens = std::max<int64_t>(1, (p.num_tokens + limit - 1) / limit);
  Chunks chunks;
  chunks.tokens = (tokens + Chunks::kStep - 1) / Chunks::kStep * Chunks::kStep;
  chunks.count = std::max<int64_t>(1, (p.num_tokens + chunks.tokens - 1) / chunks.tokens);
  return chunks;
}

// Bytes for the sums of all chunks; 0 if there is but one, which is the result.
int64_t partials_bytes(const RouteParams& params, const Chunks& chunks);

// Where the chunks' sums go: [count, E], [count, E] and [count], null what is not wanted.
RouteStatistics partials_in(const RouteParams& params, const Chunks& chunks, void* workspace);

// Adds them.
Outcome sum_partials(const RouteParams& params, const Chunks& chunks, const RouteStatistics& partials, Stream stream);

}  // namespace moe::cuda::routing
