// Stores of 16 bytes to global memory. The compiler takes vectors apart and does not always find the pieces together
// again: stores of 2 bytes by lanes that stand 16 apart touch each sector 8 times.
#pragma once

#include <cstdint>

namespace moe::cuda::ptx {

__device__ __forceinline__ void store_global(void* to, uint4 value) {
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)), "r"(value.x),
               "r"(value.y), "r"(value.z), "r"(value.w)
               : "memory");
}

}  // namespace moe::cuda::ptx
