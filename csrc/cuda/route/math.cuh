// The scores of route, the order of experts, and the functions under them.
//
// The float functions repeat csrc/cpu/vectorized/math.h operation by operation, with nothing contracted to a fused
// multiply-add that would round differently. So CPU and GPU give the same bits: two scores tie on both or on neither,
// and the ids agree.
#pragma once

#include <cfloat>
#include <climits>
#include <cstdint>

#include "cuda/common/numeric.cuh"
#include "moe/route.h"

namespace moe::cuda::routing {

__device__ inline float infinity(float) { return __int_as_float(0x7f800000); }
__device__ inline double infinity(double) { return __longlong_as_double(0x7ff0000000000000); }

// Below the key of every number: padding, or already chosen.
template <class A>
struct KeyOf {
  using type = int32_t;
  static constexpr int32_t kLowest = INT32_MIN;
  static constexpr int32_t kHighest = INT32_MAX;
};
template <>
struct KeyOf<double> {
  using type = int64_t;
  static constexpr int64_t kLowest = INT64_MIN;
  static constexpr int64_t kHighest = INT64_MAX;
};
template <class A>
using key_t = typename KeyOf<A>::type;

// Integers in the order of the floats with these bits; its own inverse.
__device__ inline int32_t order(int32_t bits) { return bits ^ ((bits >> 31) & INT32_MAX); }
__device__ inline int64_t order(int64_t bits) { return bits ^ ((bits >> 63) & INT64_MAX); }
__device__ inline float value_of(int32_t key) { return __int_as_float(order(key)); }
__device__ inline double value_of(int64_t key) { return __longlong_as_double(order(key)); }

// The key of score + bias: NaN on top, -0 equal to 0. A sum that is NaN is the one NaN that float arithmetic makes,
// 0x7fffffff, whose key is the highest; double keeps what bits the NaN came with.
__device__ inline int32_t rank(float score, float bias) {
  // -0 + -0 would stay -0.
  return order(__float_as_int(__fadd_rn(score, bias == 0.0f ? 0.0f : bias)));
}
__device__ inline int64_t rank(double score, double bias) {
  const double sum = __dadd_rn(score, bias == 0.0 ? 0.0 : bias);
  return sum == sum ? order(int64_t{__double_as_longlong(sum)}) : INT64_MAX;
}
template <class A>
__device__ key_t<A> rank(A value) {
  return rank(value, A(0));
}

// e^x for x <= 89.
__device__ inline float exp_below(float x) {
  x = x < -104.0f ? -104.0f : x;
  const float magic = 12582912.0f;
  const float shifted = __fadd_rn(__fmul_rn(x, 1.44269504f), magic);
  const float n = __fsub_rn(shifted, magic);
  // The product is exact, so fusing it changes nothing.
  const float high = __fmaf_rn(n, -0.693359375f, x);
  const float r = __fsub_rn(high, __fmul_rn(n, -2.12194440e-4f));
  float q = __fadd_rn(1.39463681e-3f, __fmul_rn(1.99187838e-4f, r));
  q = __fadd_rn(8.33326392e-3f, __fmul_rn(q, r));
  q = __fadd_rn(4.16662656e-2f, __fmul_rn(q, r));
  q = __fadd_rn(1.66666672e-1f, __fmul_rn(q, r));
  q = __fadd_rn(0.5f, __fmul_rn(q, r));
  const float p = __fadd_rn(1.0f, __fadd_rn(r, __fmul_rn(__fmul_rn(r, r), q)));
  constexpr int32_t kOne = 127 << 23;
  const int32_t exponent = __float_as_int(shifted) - __float_as_int(magic);
  const int32_t first = exponent >> 1;
  const float scale0 = __int_as_float((first << 23) + kOne), scale1 = __int_as_float(((exponent - first) << 23) + kOne);
  return __fmul_rn(__fmul_rn(p, scale0), scale1);
}
__device__ inline double exp_below(double x) { return exp(x); }

// sigmoid(x) = sigmoid_of_exp(exp_below(sigmoid_exponent(x))).
__device__ inline float sigmoid_exponent(float x) { return -x > 89.0f ? 89.0f : -x; }
__device__ inline float sigmoid_of_exp(float e) { return __frcp_rn(__fadd_rn(1.0f, e)); }
__device__ inline float sigmoid(float x) { return sigmoid_of_exp(exp_below(sigmoid_exponent(x))); }
__device__ inline double sigmoid(double x) { return 1.0 / (1.0 + exp(-x)); }

// log(1 + u) for u in [0, 1].
__device__ inline float log1p_of_unit(float u) {
  const float s = __fdiv_rn(u, __fadd_rn(2.0f, u));
  const float z = __fmul_rn(s, s);
  float q = __fadd_rn(2.14276582e-1f, __fmul_rn(2.43009344e-1f, z));
  q = __fadd_rn(2.86168844e-1f, __fmul_rn(q, z));
  q = __fadd_rn(3.99988770e-1f, __fmul_rn(q, z));
  q = __fadd_rn(6.66666746e-1f, __fmul_rn(q, z));
  return __fadd_rn(__fmul_rn(2.0f, s), __fmul_rn(__fmul_rn(s, z), q));
}
__device__ inline double log1p_of_unit(double u) { return log1p(u); }

// The root of log(1 + e^x).
__device__ inline float sqrt_softplus(float x) {
  const float u = log1p_of_unit(exp_below(x > 0.0f ? -x : x));
  return __fsqrt_rn(x > 0.0f ? __fadd_rn(x, u) : u);
}
__device__ inline double sqrt_softplus(double x) {
  const double u = log1p_of_unit(exp(x > 0.0 ? -x : x));
  return sqrt(x > 0.0 ? x + u : u);
}

// A score that looks at one logit alone, and its slope.
template <class A>
__device__ A score_of(Score score, A z) {
  return score == Score::kSigmoid ? sigmoid(z) : score == Score::kSqrtSoftplus ? sqrt_softplus(z) : z;
}
template <class A>
__device__ A slope_of(Score score, A z, A s) {
  if (score == Score::kSigmoid) return s * (A(1) - s);
  // Where softplus has underflowed, so has the slope.
  if (score == Score::kSqrtSoftplus) return s == A(0) ? A(0) : sigmoid(z) / (s + s);
  return A(1);
}

// NaN becomes -inf and +inf the largest finite float32.
template <class A>
__device__ A sanitized(A x) {
  const A low = x == x ? x : -infinity(A());
  return low == infinity(A()) ? A(FLT_MAX) : low;
}

// Whether a sum of scores has underflowed; NaN has not. One that has is replaced before anything is divided by it.
__device__ inline bool is_tiny(float x) { return x < FLT_MIN; }
__device__ inline bool is_tiny(double x) { return x < DBL_MIN; }
__device__ inline float at_least_tiny(float x) { return is_tiny(x) ? FLT_MIN : x; }
__device__ inline double at_least_tiny(double x) { return is_tiny(x) ? DBL_MIN : x; }

// Division by the sum of a row, correctly rounded.
class DivideBy {
 public:
  __device__ explicit DivideBy(float divisor) : divisor_(divisor), inverse_(1.0f / divisor) {}

  // For numerators from 2^-64 to 1, or 0, or NaN, and divisors from 1 to 2^31: no remainder underflows, so two
  // corrections round correctly. needs_care says which numerators are others.
  __device__ float fast(float x) const {
    float q = __fmul_rn(x, inverse_);
    q = __fmaf_rn(__fmaf_rn(q, -divisor_, x), inverse_, q);
    return __fmaf_rn(__fmaf_rn(q, -divisor_, x), inverse_, q);
  }
  __device__ static bool needs_care(float x) {
    constexpr uint32_t kSmall = (127 - 64) << 23;
    return __float_as_uint(x) - 1 < kSmall - 1;
  }
  __device__ float operator()(float x) const { return __fdiv_rn(x, divisor_); }

 private:
  float divisor_, inverse_;
};

}  // namespace moe::cuda::routing
