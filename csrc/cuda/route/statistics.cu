// The second pass of route's statistics: the sums of the chunks [C, E] -> [E]. A block takes 32 experts: warp w adds
// chunks w, w + 32, ..., then the 32 sums are added in the order of the warps. One more block does the same for z.
#include "cuda/route/statistics.h"

#include "cuda/common/launch_kernel.cuh"

namespace moe::cuda::routing {

namespace {

constexpr int kWarps = 32;

int64_t aligned(int64_t bytes) { return (bytes + 255) / 256 * 256; }

int64_t size_of_sums(const RouteParams& params) { return params.dtype == DType::kFloat64 ? 8 : 4; }

// total[column] = sum over rows of values[row, column], for 32 columns of the block.
template <class A>
__device__ void sum_rows(const A* values, int64_t rows, int64_t columns, int64_t first, A* total) {
  __shared__ A sums[kWarps][32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t column = first + lane;
  A sum = 0;
  if (column < columns) {
#pragma unroll 8
    for (int64_t row = warp; row < rows; row += kWarps) sum += values[row * columns + column];
  }
  sums[warp][lane] = sum;
  __syncthreads();
  if (warp == 0 && column < columns) {
    for (int w = 1; w < kWarps; ++w) sum += sums[w][lane];
    total[column] = sum;
  }
  __syncthreads();
}

template <class A>
__global__ void __launch_bounds__(kWarps * 32)
    route_statistics_kernel(const RouteStatistics partials, const RouteStatistics total, int64_t num_chunks,
                            int64_t num_experts) {
  const int64_t first = static_cast<int64_t>(blockIdx.x) * 32;
  if (first < num_experts) {
    if (partials.score_sums != nullptr) {
      sum_rows(static_cast<const A*>(partials.score_sums), num_chunks, num_experts, first,
               static_cast<A*>(total.score_sums));
    }
    if (partials.expert_counts != nullptr) {
      sum_rows<int32_t>(partials.expert_counts, num_chunks, num_experts, first, total.expert_counts);
    }
  } else if (partials.z_sum != nullptr) {
    sum_rows(static_cast<const A*>(partials.z_sum), num_chunks, 1, 0, static_cast<A*>(total.z_sum));
  }
}

}  // namespace

int64_t partials_bytes(const RouteParams& params, const Chunks& chunks) {
  if (chunks.count <= 1) return 0;
  const RouteStatistics& wanted = params.statistics;
  const int64_t cells = chunks.count * params.num_experts;
  int64_t bytes = 0;
  if (wanted.score_sums != nullptr) bytes += aligned(cells * size_of_sums(params));
  if (wanted.expert_counts != nullptr) bytes += aligned(cells * static_cast<int64_t>(sizeof(int32_t)));
  if (wanted.z_sum != nullptr) bytes += aligned(chunks.count * size_of_sums(params));
  return bytes;
}

RouteStatistics partials_in(const RouteParams& params, const Chunks& chunks, void* workspace) {
  if (chunks.count <= 1) return params.statistics;
  const RouteStatistics& wanted = params.statistics;
  const int64_t cells = chunks.count * params.num_experts;
  char* next = static_cast<char*>(workspace);
  const auto take = [&](bool is_wanted, int64_t bytes) -> void* {
    if (!is_wanted) return nullptr;
    char* taken = next;
    next += aligned(bytes);
    return taken;
  };
  RouteStatistics partials = {};
  partials.score_sums = take(wanted.score_sums != nullptr, cells * size_of_sums(params));
  partials.expert_counts = static_cast<int32_t*>(take(wanted.expert_counts != nullptr, cells * 4));
  partials.z_sum = take(wanted.z_sum != nullptr, chunks.count * size_of_sums(params));
  return partials;
}

Outcome sum_partials(const RouteParams& params, const Chunks& chunks, const RouteStatistics& partials, Stream stream) {
  if (chunks.count <= 1) return {};
  const int64_t blocks = (params.num_experts + 31) / 32 + (partials.z_sum != nullptr ? 1 : 0);
  const dim3 grid(static_cast<uint32_t>(blocks)), block(kWarps * 32);
  const auto kernel =
      params.dtype == DType::kFloat64 ? route_statistics_kernel<double> : route_statistics_kernel<float>;
  return launch("route_statistics", kernel, grid, block, 0, stream, partials, params.statistics, chunks.count,
                params.num_experts);
}

}  // namespace moe::cuda::routing
