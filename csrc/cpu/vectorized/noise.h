// noise: a counter-based generator and three distributions. Contract: moe/noise.h.
//
// Blocks are worked on in groups, one block to a lane. The arithmetic is repeated operation by operation in
// csrc/cuda/noise/distributions.cuh. Nothing here is contracted, so the bits are the same. Coefficients of sine and
// cosine: minimax fits as in math.h.
#pragma once

#include "cpu/vectorized/math.h"
#include "moe/noise.h"

namespace moe::cpu::MOE_ISA {

namespace noise_details {

inline constexpr int kGroup = 16;  // blocks

// log(x) for normal x > 0: n log(2) + log(m), m from sqrt(1/2) to sqrt(2). The same fit as log1p_of_unit, well inside.
MOE_INLINE float log_of_normal(float x) {
  const int32_t offset = bits_of(x) - 0x3f3504f3;  // sqrt(1/2)
  const int32_t exponent = offset >> 23;
  const float m = float_of((offset & 0x007fffff) + 0x3f3504f3);
  const float n = static_cast<float>(exponent);
  return n * 0.693359375f + (n * -2.12194440e-4f + log1p_of_unit(m - 1.0f));
}

// (floor(w / 2) + 1/2) 2^-31, rounded: from 2^-32 to 1.
MOE_INLINE float fraction(uint32_t word) {
  return (static_cast<float>(static_cast<int32_t>(word >> 1)) + 0.5f) * 0x1p-31f;
}

MOE_INLINE float uniform(uint32_t word) {
  return (static_cast<float>(static_cast<int32_t>(word >> 9)) + 0.5f) * 0x1p-23f;
}

MOE_INLINE float gumbel(uint32_t word) {
  const float v = at_most(fraction(word), 0x1.fffffep-1f);
  // What the subtraction rounds off is put back to first order: log(1 - v) keeps its digits where v is small.
  const float rest = 1.0f - v;
  const float lost = (1.0f - rest) - v;
  return -log_of_normal(-(log_of_normal(rest) + lost / rest));
}

MOE_INLINE float radius(uint32_t word) { return __builtin_sqrtf(-2.0f * log_of_normal(fraction(word))); }

struct Direction {
  float cosine, sine;
};

// The angle is the nearest quarter turn and a rest of at most an eighth.
MOE_INLINE Direction direction(uint32_t word) {
  const uint32_t quarter = (word + 0x20000000u) >> 30;
  const float x = static_cast<float>(static_cast<int32_t>(word - (quarter << 30))) * 0x1p-32f;
  const float z = x * x;
  float s = 81.5923538f + -75.3935623f * z;
  s = -41.3416634f + s * z;
  s = 6.28318548f + s * z;
  s = s * x;
  float c = -85.4437408f + 59.2459641f * z;
  c = 64.9393234f + c * z;
  c = -19.7392082f + c * z;
  c = 1.0f + c * z;
  const bool turned = (quarter & 1u) != 0;
  const float cosine = turned ? s : c, sine = turned ? c : s;
  // Quarters 1 and 2 have a negative cosine, 2 and 3 a negative sine.
  const uint32_t cosine_sign = ((quarter + 1u) & 2u) << 30, sine_sign = (quarter & 2u) << 30;
  return {float_of(static_cast<int32_t>(static_cast<uint32_t>(bits_of(cosine)) ^ cosine_sign)),
          float_of(static_cast<int32_t>(static_cast<uint32_t>(bits_of(sine)) ^ sine_sign))};
}

// words[i] of blocks first, first + 1, ... The rounds are unrolled, so that the loop over blocks is the one that
// vectorises.
MOE_INLINE void philox(uint64_t seed, uint64_t first, uint32_t (&words)[kNoiseBlock][kGroup]) {
  for (int i = 0; i < kGroup; ++i) {
    const uint64_t block = first + static_cast<uint64_t>(i);
    uint32_t w0 = static_cast<uint32_t>(block), w1 = static_cast<uint32_t>(block >> 32), w2 = 0, w3 = 0;
    uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
#pragma GCC unroll 10
    for (int round = 0; round < 10; ++round) {
      const uint32_t a = w0, b = w2;
      w0 = static_cast<uint32_t>((uint64_t{0xCD9E8D57u} * b) >> 32) ^ w1 ^ key0;
      w1 = 0xCD9E8D57u * b;
      w2 = static_cast<uint32_t>((uint64_t{0xD2511F53u} * a) >> 32) ^ w3 ^ key1;
      w3 = 0xD2511F53u * a;
      key0 += 0x9E3779B9u;
      key1 += 0xBB67AE85u;
    }
    words[0][i] = w0;
    words[1][i] = w1;
    words[2][i] = w2;
    words[3][i] = w3;
  }
}

// The numbers of kGroup blocks in their order. All words of a block in one pass: its stores are then whole vectors.
template <NoiseKind kKind>
MOE_INLINE void distribute(const uint32_t (&words)[kNoiseBlock][kGroup], float* __restrict out) {
  for (int i = 0; i < kGroup; ++i) {
    float* block = out + i * kNoiseBlock;
    if constexpr (kKind == NoiseKind::kNormal) {
      const float r0 = radius(words[0][i]), r1 = radius(words[2][i]);
      const Direction d0 = direction(words[1][i]), d1 = direction(words[3][i]);
      block[0] = r0 * d0.cosine;
      block[1] = r0 * d0.sine;
      block[2] = r1 * d1.cosine;
      block[3] = r1 * d1.sine;
    } else {
      block[0] = kKind == NoiseKind::kUniform ? uniform(words[0][i]) : gumbel(words[0][i]);
      block[1] = kKind == NoiseKind::kUniform ? uniform(words[1][i]) : gumbel(words[1][i]);
      block[2] = kKind == NoiseKind::kUniform ? uniform(words[2][i]) : gumbel(words[2][i]);
      block[3] = kKind == NoiseKind::kUniform ? uniform(words[3][i]) : gumbel(words[3][i]);
    }
  }
}

template <NoiseKind kKind>
static void fill(const NoiseParams& p, int64_t begin, int64_t end) {
  const uint64_t seed = static_cast<uint64_t>(*p.seed);
  const int64_t last = end * kNoiseBlock < p.count ? end * kNoiseBlock : p.count;
  for (int64_t group = begin; group < end; group += kGroup) {
    uint32_t words[kNoiseBlock][kGroup];
    philox(seed, static_cast<uint64_t>(group), words);
    const int64_t first = group * kNoiseBlock;
    if (first + kGroup * kNoiseBlock <= last) {
      distribute<kKind>(words, p.out + first);
      continue;
    }
    float values[kGroup * kNoiseBlock];
    distribute<kKind>(words, values);
    for (int64_t n = first; n < last; ++n) p.out[n] = values[n - first];
  }
}

}  // namespace noise_details

static void noise(const NoiseParams& p, int64_t begin, int64_t end) {
  switch (p.kind) {
    case NoiseKind::kUniform:
      return noise_details::fill<NoiseKind::kUniform>(p, begin, end);
    case NoiseKind::kNormal:
      return noise_details::fill<NoiseKind::kNormal>(p, begin, end);
    case NoiseKind::kGumbel:
      return noise_details::fill<NoiseKind::kGumbel>(p, begin, end);
  }
}

}  // namespace moe::cpu::MOE_ISA
