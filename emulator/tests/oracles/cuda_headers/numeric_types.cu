// Runs the functions of numeric_types.h on the device, one set of arguments per thread.
#include "numeric_types.h"

template <typename T>
__device__ void scalars(const T* a, const T* b, const T* c, T* out, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) half_results(a[i], b[i], c[i], out + i * kHalfResults);
}

template <typename T>
__device__ void pairs(const T* a, const T* b, const T* c, typename Pair<T>::Type* out, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) packed_results(a[i], b[i], c[i], out + i * kPackedResults);
}

extern "C" __global__ void scalar_fp16(const __half* a, const __half* b, const __half* c, __half* out, int n) {
  scalars(a, b, c, out, n);
}
extern "C" __global__ void scalar_bf16(const __nv_bfloat16* a, const __nv_bfloat16* b, const __nv_bfloat16* c,
                                       __nv_bfloat16* out, int n) {
  scalars(a, b, c, out, n);
}
extern "C" __global__ void packed_fp16(const __half* a, const __half* b, const __half* c, __half2* out, int n) {
  pairs(a, b, c, out, n);
}
extern "C" __global__ void packed_bf16(const __nv_bfloat16* a, const __nv_bfloat16* b, const __nv_bfloat16* c,
                                       __nv_bfloat162* out, int n) {
  pairs(a, b, c, out, n);
}
extern "C" __global__ void conversions(const float* x, const long long* integers, unsigned long long* out, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) conversion_results(x[i], integers[i], out + i * kConversionResults);
}

// All 256 patterns of both fp8 formats, as halves and as floats.
extern "C" __global__ void widen_fp8(__half_raw* halves, float* floats) {
  const int i = threadIdx.x;
  halves[i] = __nv_cvt_fp8_to_halfraw(i, __NV_E4M3);
  halves[256 + i] = __nv_cvt_fp8_to_halfraw(i, __NV_E5M2);
  __nv_fp8_e4m3 small;
  small.__x = i;
  floats[i] = float(small);
  __nv_fp8_e5m2 large;
  large.__x = i;
  floats[256 + i] = float(large);
}

// Functions without the same result on the host: hardware approximations.
extern "C" __global__ void approximations(const __half* x, __half* out, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  __half* row = out + i * 8;
  row[0] = hexp(x[i]);
  row[1] = hexp2(x[i]);
  row[2] = hlog(x[i]);
  row[3] = hlog2(x[i]);
  row[4] = hsqrt(x[i]);
  row[5] = hrsqrt(x[i]);
  row[6] = hrcp(x[i]);
  row[7] = x[i] / __half(3.0f);
}

extern "C" __global__ void atomics(const __half* h, const __nv_bfloat16* b, __half2* h_sum, __nv_bfloat162* b_sum,
                                   __half* h_scalar, __nv_bfloat16* b_scalar) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  atomicAdd(h_sum, __halves2half2(h[i], __hneg(h[i])));
  atomicAdd(b_sum, __halves2bfloat162(b[i], __hneg(b[i])));
  atomicAdd(h_scalar, h[i]);
  atomicAdd(b_scalar, b[i]);
}

extern "C" __global__ void warp_shuffles(const __half2* in, __half2* out) {
  const __half2 mine = in[threadIdx.x];
  out[threadIdx.x] = __hadd2(__shfl_xor_sync(~0u, mine, 5), __shfl_down_sync(~0u, mine, 3));
}
