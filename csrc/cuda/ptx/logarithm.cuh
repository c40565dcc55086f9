// The hardware's approximation of log2(x), within 2^-22 absolutely. Subnormal numbers count as 0.
#pragma once

namespace moe::cuda::ptx {

__device__ __forceinline__ float log2_approximate(float x) {
  float result;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

}  // namespace moe::cuda::ptx
