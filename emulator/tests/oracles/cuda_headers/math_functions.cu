// The math library of CUDA (libdevice), fp32 and fp64, with and without fast approximations: one row per function.
#include <math_constants.h>

#define ROW(INDEX, VALUE) out[(INDEX) * n + i] = VALUE;

// Fast variants: __sinf and the like come with -use_fast_math or by name.
extern "C" __global__ void fp32_one(const float* x, float* out, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const float v = x[i];
  ROW(0, sinf(v))
  ROW(1, cosf(v))
  ROW(2, tanf(v))
  ROW(3, expf(v))
  ROW(4, exp2f(v))
  ROW(5, exp10f(v))
  ROW(6, expm1f(v))
  ROW(7, sinhf(v))
  ROW(8, coshf(v))
  ROW(9, tanhf(v))
  ROW(10, asinhf(v))
  ROW(11, atanf(v))
  ROW(12, erff(v))
  ROW(13, erfcf(v))
  ROW(14, cbrtf(v))
  ROW(15, normcdff(v))
  ROW(16, tgammaf(v))
  ROW(17, lgammaf(v))
  ROW(18, rintf(v))
  ROW(19, roundf(v))
  ROW(20, truncf(v))
  ROW(21, j0f(v))
  ROW(22, sinpif(v))
  ROW(23, cyl_bessel_i0f(v))
}

extern "C" __global__ void fp32_positive(const float* x, float* out, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const float v = x[i];
  ROW(0, logf(v))
  ROW(1, log2f(v))
  ROW(2, log10f(v))
  ROW(3, log1pf(v))
  ROW(4, sqrtf(v))
  ROW(5, rsqrtf(v))
  ROW(6, 1.0f / v)
  ROW(7, acoshf(v + 1.0f))
  ROW(8, rcbrtf(v))
  ROW(9, asinf(v / (v + 1.0f)))
  ROW(10, acosf(v / (v + 1.0f)))
  ROW(11, logbf(v))
}

extern "C" __global__ void fp32_two(const float* x, const float* y, float* out, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const float v = x[i], w = y[i];
  ROW(0, powf(fabsf(v), w))
  ROW(1, atan2f(v, w))
  ROW(2, fmodf(v, w))
  ROW(3, remainderf(v, w))
  ROW(4, hypotf(v, w))
  ROW(5, v / w)
  ROW(6, fdimf(v, w))
  ROW(7, nextafterf(v, w))
  ROW(8, copysignf(v, w))
  ROW(9, ldexpf(v, static_cast<int>(w)))
  int exponent;
  ROW(10, frexpf(v, &exponent) + exponent)
  float whole;
  ROW(11, modff(v, &whole) * 2 + whole)
}

// Rounding modes by name.
extern "C" __global__ void fp32_rounding(const float* x, const float* y, float* out, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const float v = x[i], w = y[i];
  ROW(0, __fadd_rn(v, w))
  ROW(1, __fadd_rz(v, w))
  ROW(2, __fadd_ru(v, w))
  ROW(3, __fadd_rd(v, w))
  ROW(4, __fmul_rn(v, w))
  ROW(5, __fmul_rz(v, w))
  ROW(6, __fmul_ru(v, w))
  ROW(7, __fmul_rd(v, w))
  ROW(8, __fdiv_rn(v, w))
  ROW(9, __fdiv_rz(v, w))
  ROW(10, __fdiv_ru(v, w))
  ROW(11, __fdiv_rd(v, w))
  ROW(12, __fsqrt_rn(fabsf(v)))
  ROW(13, __fsqrt_rz(fabsf(v)))
  ROW(14, __fsqrt_ru(fabsf(v)))
  ROW(15, __fsqrt_rd(fabsf(v)))
  ROW(16, __frcp_rn(v))
  ROW(17, __frcp_rz(v))
  ROW(18, __frcp_ru(v))
  ROW(19, __frcp_rd(v))
  ROW(20, __fmaf_rn(v, w, -v))
  ROW(21, __fmaf_rz(v, w, -v))
  ROW(22, __fmaf_ru(v, w, -v))
  ROW(23, __fmaf_rd(v, w, -v))
  ROW(24, __frsqrt_rn(fabsf(v)))
  ROW(25, __saturatef(v))
}

// Hardware approximations by name.
extern "C" __global__ void fp32_fast(const float* x, float* out, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const float v = x[i];
  ROW(0, __sinf(v))
  ROW(1, __cosf(v))
  ROW(2, __expf(v))
  ROW(3, __exp10f(v))
  ROW(4, __logf(v))
  ROW(5, __log2f(v))
  ROW(6, __fdividef(1.0f, v))
  ROW(7, __powf(v, 1.5f))
  ROW(8, __tanf(v))
  ROW(9, __tanhf(v))
}

extern "C" __global__ void fp64_one(const double* x, double* out, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const double v = x[i];
  ROW(0, sin(v))
  ROW(1, cos(v))
  ROW(2, exp(v))
  ROW(3, log(v))
  ROW(4, sqrt(v))
  ROW(5, 1.0 / v)
  ROW(6, rsqrt(v))
  ROW(7, tanh(v))
  ROW(8, erf(v))
  ROW(9, cbrt(v))
  ROW(10, pow(v, 1.25))
  ROW(11, atan(v))
  ROW(12, log1p(v))
  ROW(13, expm1(v))
}

// Integer intrinsics; x and y are any bits, out has one row per function.
extern "C" __global__ void integers(const int* x, const int* y, int* out, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const int v = x[i], w = y[i];
  ROW(0, __clz(v))
  ROW(1, __popc(v))
  ROW(2, __ffs(v))
  ROW(3, static_cast<int>(__brev(v)))
  ROW(4, __mulhi(v, w))
  ROW(5, static_cast<int>(__umulhi(v, w)))
  ROW(6, __byte_perm(v, w, 0x5146))
  ROW(7, static_cast<int>(__funnelshift_l(v, w, w & 31)))
  ROW(8, static_cast<int>(__funnelshift_rc(v, w, w & 63)))
  ROW(9, __sad(v >> 2, w >> 2, 7))
  ROW(10, __hadd(v, w))
  ROW(11, __rhadd(v, w))
  ROW(12, __dp4a(v, w, 100))
  ROW(13, static_cast<int>(__dp2a_lo(v, w, 5)))
  ROW(14, static_cast<int>(__vadd4(v, w)))
  ROW(15, static_cast<int>(__vmaxs2(v, w)))
  ROW(16, static_cast<int>(__vabsdiffu4(v, w)))
  ROW(17, static_cast<int>(__vcmpgts4(v, w)))
  ROW(18, __mul24(v, w))
  ROW(19, static_cast<int>(__clzll(static_cast<long long>(v) * w)))
  ROW(20, static_cast<int>(__mul64hi(static_cast<long long>(v) << 31, static_cast<long long>(w) << 29)))
  ROW(21,
      static_cast<int>((static_cast<unsigned long long>(v) * 0x9E3779B97F4A7C15ull) / (static_cast<unsigned>(w) | 1u)))
  ROW(22, static_cast<int>((static_cast<long long>(v) * w) % ((v ^ w) | 1)))
  ROW(23, __viaddmax_s32_relu(v >> 1, w >> 1, v))
  ROW(24, __vimin3_s32(v, w, v ^ w))
}
