// The generator and the distributions of noise.
//
// The float functions repeat csrc/cpu/vectorized/noise.h operation by operation, with nothing contracted to a fused
// multiply-add, so CPU and GPU give the same bits.
#pragma once

#include <cstdint>

#include "moe/noise.h"

namespace moe::cuda::noise_details {

struct Words {
  uint32_t w[kNoiseBlock];
};

__device__ inline Words philox(uint64_t seed, uint64_t block) {
  uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
  Words c = {{static_cast<uint32_t>(block), static_cast<uint32_t>(block >> 32), 0, 0}};
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const uint32_t a = c.w[0], b = c.w[2];
    c = {{__umulhi(0xCD9E8D57u, b) ^ c.w[1] ^ key0, 0xCD9E8D57u * b, __umulhi(0xD2511F53u, a) ^ c.w[3] ^ key1,
          0xD2511F53u * a}};
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return c;
}

// For u from sqrt(1/2) - 1 to sqrt(2) - 1.
__device__ inline float log1p_of_small(float u) {
  const float s = __fdiv_rn(u, __fadd_rn(2.0f, u));
  const float z = __fmul_rn(s, s);
  float q = __fadd_rn(2.14276582e-1f, __fmul_rn(2.43009344e-1f, z));
  q = __fadd_rn(2.86168844e-1f, __fmul_rn(q, z));
  q = __fadd_rn(3.99988770e-1f, __fmul_rn(q, z));
  q = __fadd_rn(6.66666746e-1f, __fmul_rn(q, z));
  return __fadd_rn(__fmul_rn(2.0f, s), __fmul_rn(__fmul_rn(s, z), q));
}

// log(x) for normal x > 0.
__device__ inline float log_of_normal(float x) {
  const int32_t offset = __float_as_int(x) - 0x3f3504f3;  // sqrt(1/2)
  const float n = __int2float_rn(offset >> 23);
  const float m = __int_as_float((offset & 0x007fffff) + 0x3f3504f3);
  const float small = __fadd_rn(__fmul_rn(n, -2.12194440e-4f), log1p_of_small(__fsub_rn(m, 1.0f)));
  return __fadd_rn(__fmul_rn(n, 0.693359375f), small);
}

__device__ inline float fraction(uint32_t word) {
  return __fmul_rn(__fadd_rn(__int2float_rn(static_cast<int32_t>(word >> 1)), 0.5f), 0x1p-31f);
}

__device__ inline float uniform(uint32_t word) {
  return __fmul_rn(__fadd_rn(__int2float_rn(static_cast<int32_t>(word >> 9)), 0.5f), 0x1p-23f);
}

__device__ inline float gumbel(uint32_t word) {
  const float v = fminf(fraction(word), 0x1.fffffep-1f);
  const float rest = __fsub_rn(1.0f, v);
  const float lost = __fsub_rn(__fsub_rn(1.0f, rest), v);
  return -log_of_normal(-__fadd_rn(log_of_normal(rest), __fdiv_rn(lost, rest)));
}

__device__ inline float radius(uint32_t word) { return __fsqrt_rn(__fmul_rn(-2.0f, log_of_normal(fraction(word)))); }

struct Direction {
  float cosine, sine;
};

__device__ inline Direction direction(uint32_t word) {
  const uint32_t quarter = (word + 0x20000000u) >> 30;
  const float x = __fmul_rn(__int2float_rn(static_cast<int32_t>(word - (quarter << 30))), 0x1p-32f);
  const float z = __fmul_rn(x, x);
  float s = __fadd_rn(81.5923538f, __fmul_rn(-75.3935623f, z));
  s = __fadd_rn(-41.3416634f, __fmul_rn(s, z));
  s = __fadd_rn(6.28318548f, __fmul_rn(s, z));
  s = __fmul_rn(s, x);
  float c = __fadd_rn(-85.4437408f, __fmul_rn(59.2459641f, z));
  c = __fadd_rn(64.9393234f, __fmul_rn(c, z));
  c = __fadd_rn(-19.7392082f, __fmul_rn(c, z));
  c = __fadd_rn(1.0f, __fmul_rn(c, z));
  const bool turned = (quarter & 1u) != 0;
  const uint32_t cosine_sign = ((quarter + 1u) & 2u) << 30, sine_sign = (quarter & 2u) << 30;
  return {__uint_as_float(__float_as_uint(turned ? s : c) ^ cosine_sign),
          __uint_as_float(__float_as_uint(turned ? c : s) ^ sine_sign)};
}

template <NoiseKind kKind>
__device__ float4 distributed(const Words& words) {
  if constexpr (kKind == NoiseKind::kUniform) {
    return {uniform(words.w[0]), uniform(words.w[1]), uniform(words.w[2]), uniform(words.w[3])};
  } else if constexpr (kKind == NoiseKind::kGumbel) {
    return {gumbel(words.w[0]), gumbel(words.w[1]), gumbel(words.w[2]), gumbel(words.w[3])};
  } else {
    const float r0 = radius(words.w[0]), r1 = radius(words.w[2]);
    const Direction d0 = direction(words.w[1]), d1 = direction(words.w[3]);
    return {__fmul_rn(r0, d0.cosine), __fmul_rn(r0, d0.sine), __fmul_rn(r1, d1.cosine), __fmul_rn(r1, d1.sine)};
  }
}

}  // namespace moe::cuda::noise_details
