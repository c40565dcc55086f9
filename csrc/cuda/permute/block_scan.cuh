// Prefix sums and maxima over the threads of a block. Every thread of the block calls; each call needs `scratch` of
// kThreads / 32 values in shared memory and leaves it free for the next.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace moe::cuda {

constexpr uint32_t kAllLanes = 0xffffffffu;

__device__ inline int lane_of(int thread) { return thread & 31; }

template <class T>
struct Sum {
  __device__ static T combine(T a, T b) { return a + b; }
};

template <class T>
struct Maximum {
  __device__ static T combine(T a, T b) { return a > b ? a : b; }
};

// Combines the values of threads 0 .. own into `own`. Values must be such that `identity` changes nothing.
template <class Operator, class T>
__device__ T warp_inclusive_scan(T own, int lane) {
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const T other = __shfl_up_sync(kAllLanes, own, distance);
    if (lane >= distance) own = Operator::combine(other, own);
  }
  return own;
}

template <class T>
struct Scanned {
  T before;  // of the threads before this one, from identity on
  T total;
};

template <class Operator, int kThreads, class T>
__device__ Scanned<T> block_exclusive_scan(T value, T identity, T* scratch) {
  static_assert(kThreads % 32 == 0 && kThreads <= 1024);
  constexpr int kWarps = kThreads / 32;
  const int lane = lane_of(threadIdx.x), warp = static_cast<int>(threadIdx.x) / 32;
  const T inclusive = warp_inclusive_scan<Operator>(value, lane);
  if (lane == 31) scratch[warp] = inclusive;
  __syncthreads();
  const T of_warp = warp_inclusive_scan<Operator>(lane < kWarps ? scratch[lane] : identity, lane);
  const T before_warp = __shfl_sync(kAllLanes, of_warp, warp - 1);
  const T before_lane = __shfl_up_sync(kAllLanes, inclusive, 1);
  const T total = __shfl_sync(kAllLanes, of_warp, 31);
  __syncthreads();
  T before = warp == 0 ? identity : before_warp;
  if (lane > 0) before = Operator::combine(before, before_lane);
  return {before, total};
}

}  // namespace moe::cuda
