// cp.async: copies of 16 bytes from global to shared memory that a thread issues and waits for later (sm_80).
#pragma once

#include <cstdint>

namespace moe::cuda::ptx {

// The address in shared memory that the instructions of this folder take.
__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// Copies 16 bytes past L1. L2 fetches the 128 bytes around them: the neighbours are copied by other lanes or next.
__device__ __forceinline__ void copy_async(uint32_t to, const void* from) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}

// Copies 16 bytes to `to` + kOffset, or writes 16 zeros and reads nothing.
template <int kOffset = 0>
__device__ __forceinline__ void copy_async_or_zero(uint32_t to, const void* from, bool valid) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0 + %3], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(valid ? 16 : 0),
               "n"(kOffset)
               : "memory");
}

// Copies the first bytes of 16 at `from` + kFromOffset to `to` + kOffset and writes zeros after them; reads nothing
// where bytes is 0.
template <int kOffset = 0, int kFromOffset = 0>
__device__ __forceinline__ void copy_async_part(uint32_t to, const void* from, uint32_t bytes) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0 + %3], [%1 + %4], 16, %2;" ::"r"(to), "l"(from), "r"(bytes),
               "n"(kOffset), "n"(kFromOffset)
               : "memory");
}

// Closes this thread's group of copies; a group may be empty.
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most kPending of this thread's latest groups are under way.
template <int kPending>
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

}  // namespace moe::cuda::ptx
