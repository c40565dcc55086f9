// ldmatrix: four 8x8 matrices of 16-bit elements from shared memory into the fragments of mma.sync (sm_75).
//
// Lane l names row l % 8 of matrix l / 8: 16 bytes, aligned to 16. Register i then holds of matrix i the elements
// [lane / 4][2 * (lane % 4) + 0, 1]; transposed, [2 * (lane % 4) + 0, 1][lane / 4]. A row of four 32-bit elements is
// loaded as eight halves: register i holds element [lane / 4][lane % 4].
//
// kOffset, a number of bytes, is added to the address by the instruction itself.
#pragma once

#include <cstdint>

namespace moe::cuda::ptx {

template <int kOffset = 0>
__device__ __forceinline__ void load_matrices(uint32_t (&to)[4], uint32_t from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4 + %5];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(from), "n"(kOffset)
               : "memory");
}

template <int kOffset = 0>
__device__ __forceinline__ void load_matrices_transposed(uint32_t (&to)[4], uint32_t from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4 + %5];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(from), "n"(kOffset)
               : "memory");
}

// 32 bits of shared memory, for what ldmatrix cannot arrange.
template <int kOffset = 0>
__device__ __forceinline__ uint32_t load_word(uint32_t from) {
  uint32_t word;
  asm volatile("ld.shared.b32 %0, [%1 + %2];" : "=r"(word) : "r"(from), "n"(kOffset) : "memory");
  return word;
}

}  // namespace moe::cuda::ptx
