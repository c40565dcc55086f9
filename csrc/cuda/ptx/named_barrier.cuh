// Barriers of a part of a block's warps. Barrier 0 is __syncthreads().
#pragma once

namespace moe::cuda::ptx {

// Whole warps come together; kThreads is a multiple of 32.
template <int kThreads>
__device__ __forceinline__ void sync_threads(int barrier) {
  asm volatile("barrier.sync.aligned %0, %1;" ::"r"(barrier), "n"(kThreads) : "memory");
}

}  // namespace moe::cuda::ptx
