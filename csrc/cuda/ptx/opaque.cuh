// Not an instruction: the compiler forgets what it knows about a value.
#pragma once

namespace moe::cuda::ptx {

// What is computed from the result is computed here, not before a loop around it, where it would keep registers.
__device__ __forceinline__ int opaque(int x) {
  asm volatile("" : "+r"(x));
  return x;
}

}  // namespace moe::cuda::ptx
