// The cut of route_top_p. A warp takes 32 tokens: each lane adds up one of them, since the sum has an order, and most
// reach p within a few experts; then all lanes write one row after the other. Contract: moe/top_p.h.
#include "cuda/route/top_p.h"

#include "cuda/common/launch_kernel.cuh"

namespace moe::cuda {

namespace {

constexpr int kThreads = 128;

__device__ inline float add(float a, float b) { return __fadd_rn(a, b); }
__device__ inline double add(double a, double b) { return __dadd_rn(a, b); }
__device__ inline float divide(float a, float b) { return __fdiv_rn(a, b); }
__device__ inline double divide(double a, double b) { return __ddiv_rn(a, b); }

template <class A>
__global__ void __launch_bounds__(kThreads) cut_at_top_p_kernel(const TopPParams params) {
  const int lane = threadIdx.x % 32;
  const int64_t first = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) - lane;
  const int64_t top_k = params.top_k;
  A* const all_weights = static_cast<A*>(params.topk_weights);
  const A p = static_cast<A>(params.p);

  A sum = 0;
  int64_t kept = 0;
  if (first + lane < params.num_tokens) {
    const A* weights = all_weights + (first + lane) * top_k;
    sum = weights[0];
    kept = 1;
    for (; kept < top_k && !(sum >= p); ++kept) {
      const A next = weights[kept];
      if (next == A(0)) break;
      sum = add(sum, next);
    }
  }
  __syncwarp();

  const A scale = static_cast<A>(params.scale), eps = static_cast<A>(params.eps);
  for (int row = 0; row < 32 && first + row < params.num_tokens; ++row) {
    const int64_t cut = __shfl_sync(0xffffffffu, kept, row);
    const A divisor = add(__shfl_sync(0xffffffffu, sum, row), eps);
    A* weights = all_weights + (first + row) * top_k;
    int32_t* ids = params.topk_ids + (first + row) * top_k;
    for (int64_t k = lane; k < top_k; k += 32) {
      if (k >= cut) {
        weights[k] = A(0);
        ids[k] = -1;
      } else {
        const A weight = params.renormalize && ids[k] >= 0 ? divide(weights[k], divisor) : weights[k];
        weights[k] = weight * scale;
      }
    }
  }
}

}  // namespace

Outcome cut_at_top_p(const TopPParams& p, Stream stream) {
  const int64_t blocks = (p.num_tokens + kThreads - 1) / kThreads;
  if (p.num_tokens < 0 || p.top_k < 1 || blocks > INT32_MAX) return {Status::kInvalidArgument, 0, "cut_at_top_p"};
  const auto kernel = p.dtype == DType::kFloat64 ? cut_at_top_p_kernel<double> : cut_at_top_p_kernel<float>;
  return launch("cut_at_top_p", kernel, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), 0, stream, p);
}

}  // namespace moe::cuda
