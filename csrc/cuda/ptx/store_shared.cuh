// Stores of 4, 8 and 16 bytes to shared memory. The compiler takes vectors of floats apart and does not always find
// them together again: two stores of 4 bytes meet bank conflicts that one of 8 does not.
//
// kOffset, a number of bytes, is added to the address by the instruction itself.
#pragma once

#include <cstdint>

namespace moe::cuda::ptx {

template <int kOffset = 0>
__device__ __forceinline__ void store_shared(uint32_t to, uint32_t value) {
  asm volatile("st.shared.b32 [%0 + %2], %1;" ::"r"(to), "r"(value), "n"(kOffset) : "memory");
}

template <int kOffset = 0>
__device__ __forceinline__ void store_shared(uint32_t to, float x, float y) {
  asm volatile("st.shared.v2.f32 [%0 + %3], {%1, %2};" ::"r"(to), "f"(x), "f"(y), "n"(kOffset) : "memory");
}

template <int kOffset = 0>
__device__ __forceinline__ void store_shared(uint32_t to, float x, float y, float z, float w) {
  asm volatile("st.shared.v4.f32 [%0 + %5], {%1, %2, %3, %4};" ::"r"(to), "f"(x), "f"(y), "f"(z), "f"(w), "n"(kOffset)
               : "memory");
}

template <int kOffset = 0>
__device__ __forceinline__ void store_shared(uint32_t to, double x, double y) {
  asm volatile("st.shared.v2.f64 [%0 + %3], {%1, %2};" ::"r"(to), "d"(x), "d"(y), "n"(kOffset) : "memory");
}

}  // namespace moe::cuda::ptx
