// TMA: one thread copies a box of a tensor to shared memory; the hardware counts the bytes on an mbarrier (sm_90).
#pragma once

#include <cuda.h>

#include <cstdint>

#include "cuda/ptx/cp_async.cuh"

namespace moe::cuda::ptx {

// The box at (x, y, z), x counting the contiguous elements; what lies outside of the tensor becomes zeros, and its
// bytes count too. `to` is a multiple of 128, of 1024 where the map swizzles rows of 128 bytes.
__device__ __forceinline__ void copy_box(uint32_t to, const CUtensorMap& map, int32_t x, int32_t y, int32_t z,
                                         uint64_t& barrier) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], "
      "[%2];" ::"r"(to),
      "l"(&map), "r"(shared_address(&barrier)), "r"(x), "r"(y), "r"(z)
      : "memory");
}

// TMA and wgmma come to see what this thread wrote to shared memory, or knows to be written, by other means.
__device__ __forceinline__ void fence_async_proxy() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

}  // namespace moe::cuda::ptx
