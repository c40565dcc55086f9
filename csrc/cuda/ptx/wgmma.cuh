// wgmma: a warpgroup's asynchronous product of matrices in shared memory, sums in float32 (sm_90a).
//
// Warp w of the four has rows 16 w .. 16 w + 15 of 64. With g = lane / 4 and t = lane % 4, sums[4 c .. 4 c + 3] are
// [g][8 c + 2 t], [g][8 c + 2 t + 1], [g + 8][8 c + 2 t], [g + 8][8 c + 2 t + 1]. Between a product and the wait for
// its group nothing may touch the sums, and nothing may write the operands.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

namespace moe::cuda::ptx {

// Orders what this warp did with its sums before the products that follow.
__device__ __forceinline__ void fence_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

// Closes the group of products since the last one.
__device__ __forceinline__ void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits until at most kPending of the latest groups are under way.
template <int kPending>
__device__ __forceinline__ void wait_for_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// No instruction: the compiler moves no use of the sums across it.
template <int kCount>
__device__ __forceinline__ void pin(float (&sums)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(sums[i])::"memory");
}

#define MOE_SUMS_4(i) "+f"(sums[i]), "+f"(sums[i + 1]), "+f"(sums[i + 2]), "+f"(sums[i + 3])
#define MOE_SUMS_16(i) MOE_SUMS_4(i), MOE_SUMS_4(i + 4), MOE_SUMS_4(i + 8), MOE_SUMS_4(i + 12)
#define MOE_SUMS_64(i) MOE_SUMS_16(i), MOE_SUMS_16(i + 16), MOE_SUMS_16(i + 32), MOE_SUMS_16(i + 48)
#define MOE_NAMES_64                                                                                     \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, " \
  "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, " \
  "%42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, " \
  "%62, %63"
#define MOE_NAMES_128                                                                                        \
  MOE_NAMES_64                                                                                               \
  ", "                                                                                                       \
  "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, "     \
  "%84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, %97, %98, %99, %100, %101, %102, %103, " \
  "%104, %105, %106, %107, %108, %109, %110, %111, %112, %113, %114, %115, %116, %117, %118, %119, %120, "   \
  "%121, %122, %123, %124, %125, %126, %127"

// The names of the sums and of the four operands after them, then the sums.
#define MOE_WGMMA(shape, type, names, a_name, b_name, transposed_a, transposed_b, ...)                         \
  asm volatile("wgmma.mma_async.sync.aligned." shape ".f32." type "." type " {" names "}, " a_name ", " b_name \
               ", 1, 1, 1, " transposed_a ", " transposed_b ";"                                                \
               : __VA_ARGS__                                                                                   \
               : "l"(a), "l"(b), "n"(int{kTransposedA}), "n"(int{kTransposedB}))

// sums += a * b: 64 x 2 kSums, over 16 elements of k. a and b describe operands whose elements lie along k, transposed
// ones along m or n.
template <class T, bool kTransposedA, bool kTransposedB, int kSums>
__device__ __forceinline__ void multiply(float (&sums)[kSums], uint64_t a, uint64_t b) {
  constexpr bool kBFloat16 = std::is_same_v<T, __nv_bfloat16>;
  static_assert(kBFloat16 || std::is_same_v<T, __half>);
  static_assert(kSums == 64 || kSums == 128);
  if constexpr (kSums == 64 && kBFloat16) {
    MOE_WGMMA("m64n128k16", "bf16", MOE_NAMES_64, "%64", "%65", "%66", "%67", MOE_SUMS_64(0));
  } else if constexpr (kSums == 64) {
    MOE_WGMMA("m64n128k16", "f16", MOE_NAMES_64, "%64", "%65", "%66", "%67", MOE_SUMS_64(0));
  } else if constexpr (kBFloat16) {
    MOE_WGMMA("m64n256k16", "bf16", MOE_NAMES_128, "%128", "%129", "%130", "%131", MOE_SUMS_64(0), MOE_SUMS_64(64));
  } else {
    MOE_WGMMA("m64n256k16", "f16", MOE_NAMES_128, "%128", "%129", "%130", "%131", MOE_SUMS_64(0), MOE_SUMS_64(64));
  }
}

#undef MOE_WGMMA
#undef MOE_NAMES_128
#undef MOE_NAMES_64
#undef MOE_SUMS_64
#undef MOE_SUMS_16
#undef MOE_SUMS_4

}  // namespace moe::cuda::ptx
