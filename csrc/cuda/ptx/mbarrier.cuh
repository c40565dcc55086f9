// mbarrier: barriers in shared memory that count arrivals of threads and bytes of asynchronous copies (sm_90).
//
// A barrier goes from phase to phase, the first being 0; a wait names the parity of the phase whose end it awaits.
#pragma once

#include <cstdint>

#include "cuda/ptx/cp_async.cuh"

namespace moe::cuda::ptx {

// `arrivals` end a phase, once the bytes that were announced have come too.
__device__ __forceinline__ void init_barrier(uint64_t& barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(&barrier)), "r"(arrivals) : "memory");
}

// Makes initialised barriers visible to asynchronous copies; other threads need a barrier of the block besides.
__device__ __forceinline__ void fence_barrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void arrive(uint64_t& barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(&barrier)) : "memory");
}

// Arrives and announces so many bytes.
__device__ __forceinline__ void arrive_expecting(uint64_t& barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(&barrier)), "r"(bytes)
               : "memory");
}

// Arrives when this thread's cp.async up to here have written. One of the arrivals that end the phase.
__device__ __forceinline__ void arrive_after_copies(uint64_t& barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(shared_address(&barrier)) : "memory");
}

// May give up before the phase ends.
__device__ __forceinline__ bool try_wait(uint64_t& barrier, uint32_t parity) {
  uint32_t done;
  asm volatile(
      "{\n.reg .pred done;\nmbarrier.try_wait.parity.shared::cta.b64 done, [%1], %2;\nselp.u32 %0, 1, 0, done;\n}"
      : "=r"(done)
      : "r"(shared_address(&barrier)), "r"(parity)
      : "memory");
  return done != 0;
}

__device__ __forceinline__ void wait(uint64_t& barrier, uint32_t parity) {
  while (!try_wait(barrier, parity)) {
  }
}

}  // namespace moe::cuda::ptx
