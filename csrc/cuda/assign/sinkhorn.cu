// sinkhorn, a launch for each iteration. Blocks have chunks of tokens of their own, a warp works on a row. Every block
// forms v for itself from the column sums that the chunks left in the launch before, in one order, so all of them, and
// every run, have the same v and come to the same decision whether to go on. The first block notes both for the next
// launch, in buffers that nobody reads in this one.
//
// Several iterations in one launch would have blocks wait for each other, for which they must all be resident: only a
// cooperative launch promises that, and it fails where other kernels hold the device. One block needs no such promise,
// but draws no more than about 100 GB/s, a multiprocessor's share of the L2: the 2 MiB of 4096 tokens and 128 experts
// would take it 20 us in each iteration, several times what a launch costs.
#include <algorithm>

#include "cuda/assign/assign.h"
#include "cuda/common/launch_kernel.cuh"
#include "cuda/permute/block_scan.cuh"
#include "cuda/route/math.cuh"
#include "cuda/workspace.h"

namespace moe::cuda {

namespace {

constexpr int64_t kMostChunks = 128, kMinTokens = 32;
constexpr int64_t kMostShared = 96 * 1024;
constexpr int kMostWarps = 8;
constexpr int32_t kGoesOn = -1;

template <class A>
struct Plan {
  int64_t chunks, tokens;  // tokens of a chunk
  int warps;               // of a block; 0: a row is too long
  A* sums;                 // [2, chunks, E]: column sums
  A* v;                    // [2, E]
  A* alive;                // [chunks]: rows with anything in them
  A* target;               // [1]: what a column is to sum to
  int32_t* done;           // [max_iterations + 1]: the iteration that was the last one, or kGoesOn
  int64_t bytes;

  Plan(const SinkhornParams& p, void* memory) {
    tokens = std::max(kMinTokens, (p.num_tokens + kMostChunks - 1) / kMostChunks);
    chunks = (p.num_tokens + tokens - 1) / tokens;
    const int64_t rows = kMostShared / (p.num_experts * static_cast<int64_t>(sizeof(A)));
    warps = static_cast<int>(std::clamp<int64_t>(rows - 1, 0, kMostWarps));
    Workspace workspace(memory);
    sums = workspace.take<A>(2 * chunks * p.num_experts);
    v = workspace.take<A>(2 * p.num_experts);
    alive = workspace.take<A>(chunks);
    target = workspace.take<A>(1);
    done = workspace.take<int32_t>(p.max_iterations + 1);
    bytes = workspace.used();
  }
  size_t shared_bytes(int64_t num_experts, int rows) const {
    return static_cast<size_t>(num_experts) * rows * sizeof(A);
  }
};

__device__ float magnitude(float x) { return fabsf(x); }
__device__ double magnitude(double x) { return fabs(x); }

template <class A>
__device__ A warp_sum(A x) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(kAllLanes, x, step);
  return x;
}
template <class A>
__device__ A warp_maximum(A x) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x = fmax(x, __shfl_xor_sync(kAllLanes, x, step));
  return x;
}

// body(row number) for the rows of the block's chunk, each by one warp.
template <class A, class Body>
__device__ void for_rows(const SinkhornParams& p, const Plan<A>& plan, const Body& body) {
  const int64_t first = blockIdx.x * plan.tokens;
  const int64_t end = min(first + plan.tokens, p.num_tokens);
  for (int64_t t = first + threadIdx.x / 32; t < end; t += blockDim.x / 32) body(t);
}

template <class A>
__global__ void __launch_bounds__(kMostWarps * 32) exponentiate_kernel(const SinkhornParams p, const Plan<A> plan) {
  __shared__ int32_t alive;
  if (threadIdx.x == 0) alive = 0;
  __syncthreads();
  const int lane = lane_of(threadIdx.x);
  for_rows(p, plan, [&](int64_t t) {
    const A* logits = static_cast<const A*>(p.logits) + t * p.logits_stride;
    A* row = static_cast<A*>(p.balanced) + t * p.num_experts;
    A high = -routing::infinity(A());
    for (int64_t e = lane; e < p.num_experts; e += 32) high = fmax(high, routing::sanitized(logits[e]));
    high = warp_maximum(high);
    const bool something = high > -routing::infinity(A());
    for (int64_t e = lane; e < p.num_experts; e += 32) {
      const A z = routing::sanitized(logits[e]);
      row[e] = something && z > -routing::infinity(A()) ? routing::exp_below(z - high) : A(0);
    }
    if (something && lane == 0) atomicAdd(&alive, 1);
  });
  __syncthreads();
  if (threadIdx.x == 0) plan.alive[blockIdx.x] = static_cast<A>(alive);
  if (threadIdx.x == 0 && blockIdx.x == 0) plan.done[0] = kGoesOn;
}

// Fills v, a vector of shared memory, for `iteration`. Returns whether it is the last one.
template <class A>
__device__ bool form_v(const SinkhornParams& p, const Plan<A>& plan, int64_t iteration, A* v) {
  __shared__ A changes[kMostWarps];
  const int64_t experts = p.num_experts;
  if (iteration == 0) {
    for (int64_t e = threadIdx.x; e < experts; e += blockDim.x) {
      v[e] = 1;
      if (blockIdx.x == 0) plan.v[e] = 1;
    }
    if (blockIdx.x == 0 && threadIdx.x == 0 && p.max_iterations > 0) {
      A rows = 0;
      for (int64_t c = 0; c < plan.chunks; ++c) rows += plan.alive[c];
      *plan.target = rows / static_cast<A>(experts);
      plan.done[1] = kGoesOn;
    }
    __syncthreads();
    return false;
  }
  const A target = *plan.target;
  const A* sums = plan.sums + (iteration - 1) % 2 * plan.chunks * experts;
  const A* before = plan.v + (iteration - 1) % 2 * experts;
  A change = 0;
  bool in_range = true;
  for (int64_t e = threadIdx.x; e < experts; e += blockDim.x) {
    A sum = 0;
#pragma unroll 8
    for (int64_t c = 0; c < plan.chunks; ++c) sum += sums[c * experts + e];
    v[e] = target / fmax(sum, A(kSinkhornLeastSum));
    change += magnitude(v[e] - before[e]) / before[e];
    in_range = in_range && v[e] >= A(kSinkhornLeastFactor);
  }
  change = warp_sum(change);
  if (lane_of(threadIdx.x) == 0) changes[threadIdx.x / 32] = change;
  in_range = __syncthreads_and(in_range ? 1 : 0) != 0;
  change = 0;
  for (int w = 0; w < static_cast<int>(blockDim.x) / 32; ++w) change += changes[w];
  const bool last = !in_range || change / static_cast<A>(experts) <= static_cast<A>(p.tolerance);
  for (int64_t e = threadIdx.x; e < experts; e += blockDim.x) {
    if (!in_range) v[e] = before[e];
    if (blockIdx.x == 0) plan.v[iteration % 2 * experts + e] = v[e];
  }
  if (blockIdx.x == 0 && threadIdx.x == 0 && iteration < p.max_iterations) {
    plan.done[iteration + 1] = last ? static_cast<int32_t>(iteration) : kGoesOn;
  }
  __syncthreads();
  return last;
}

// Of a row once its columns are scaled; 1 for a row of zeros.
template <class A>
__device__ A row_sum(const SinkhornParams& p, const A* row, const A* v) {
  A sum = 0;
  for (int64_t e = lane_of(threadIdx.x); e < p.num_experts; e += 32) sum += row[e] * v[e];
  sum = warp_sum(sum);
  return sum > 0 ? sum : A(1);
}

template <class A>
__global__ void __launch_bounds__(kMostWarps * 32)
    iterate_kernel(const SinkhornParams p, const Plan<A> plan, int64_t iteration) {
  extern __shared__ double shared_vectors[];
  A* v = reinterpret_cast<A*>(shared_vectors);
  const int32_t done = plan.done[iteration];
  if (done != kGoesOn) {
    if (blockIdx.x == 0 && threadIdx.x == 0) plan.done[iteration + 1] = done;
    return;
  }
  if (form_v(p, plan, iteration, v)) return;

  A* own = v + p.num_experts * (1 + threadIdx.x / 32);  // a warp's sums
  const int lane = lane_of(threadIdx.x);
  for (int64_t e = lane; e < p.num_experts; e += 32) own[e] = 0;
  for_rows(p, plan, [&](int64_t t) {
    const A* row = static_cast<const A*>(p.balanced) + t * p.num_experts;
    const A u = 1 / row_sum(p, row, v);
    for (int64_t e = lane; e < p.num_experts; e += 32) own[e] += row[e] * u;
  });
  __syncthreads();
  A* sums = plan.sums + (iteration % 2 * plan.chunks + blockIdx.x) * p.num_experts;
  for (int64_t e = threadIdx.x; e < p.num_experts; e += blockDim.x) {
    A sum = 0;
    for (uint32_t w = 1; w <= blockDim.x / 32; ++w) sum += v[w * p.num_experts + e];
    sums[e] = sum;
  }
}

template <class A>
__global__ void __launch_bounds__(kMostWarps * 32, 1) scale_kernel(const SinkhornParams p, const Plan<A> plan) {
  extern __shared__ double shared_vectors[];
  A* v = reinterpret_cast<A*>(shared_vectors);
  const int32_t done = plan.done[p.max_iterations];
  if (done != kGoesOn) {
    for (int64_t e = threadIdx.x; e < p.num_experts; e += blockDim.x) v[e] = plan.v[done % 2 * p.num_experts + e];
    __syncthreads();
  } else {
    form_v(p, plan, p.max_iterations, v);
  }
  for_rows(p, plan, [&](int64_t t) {
    A* row = static_cast<A*>(p.balanced) + t * p.num_experts;
    const A sum = row_sum(p, row, v);
    for (int64_t e = lane_of(threadIdx.x); e < p.num_experts; e += 32) row[e] = row[e] * v[e] / sum;
  });
}

template <class A>
Outcome run(const SinkhornParams& p, void* workspace, Stream stream) {
  const Plan<A> plan(p, workspace);
  if (plan.warps == 0) return {Status::kUnsupported, 0, "sinkhorn"};
  const dim3 grid(static_cast<uint32_t>(plan.chunks)), block(static_cast<uint32_t>(plan.warps * 32));
  Outcome outcome = launch("sinkhorn_exponentiate", exponentiate_kernel<A>, grid, block, 0, stream, p, plan);
  const size_t shared = plan.shared_bytes(p.num_experts, 1 + plan.warps);
  for (int64_t i = 0; i < p.max_iterations && outcome.ok(); ++i) {
    outcome = launch("sinkhorn_iterate", iterate_kernel<A>, grid, block, shared, stream, p, plan, i);
  }
  if (!outcome.ok()) return outcome;
  return launch("sinkhorn_scale", scale_kernel<A>, grid, block, plan.shared_bytes(p.num_experts, 1), stream, p, plan);
}

bool is_valid(const SinkhornParams& p) { return p.num_tokens >= 0 && p.num_experts >= 1 && p.max_iterations >= 0; }

}  // namespace

int64_t sinkhorn_workspace_bytes(const SinkhornParams& p) {
  if (!is_valid(p) || p.num_tokens == 0) return 0;
  return p.dtype == DType::kFloat64 ? Plan<double>(p, nullptr).bytes : Plan<float>(p, nullptr).bytes;
}

Outcome sinkhorn(const SinkhornParams& p, void* workspace, Stream stream) {
  if (!is_valid(p)) return {Status::kInvalidArgument};
  if (p.num_tokens == 0) return {};
  return p.dtype == DType::kFloat64 ? run<double>(p, workspace, stream) : run<float>(p, workspace, stream);
}

}  // namespace moe::cuda
