// Steps of route that gain from instructions of their own: the places where a comparison holds.
#pragma once

#include <immintrin.h>

#include "cpu/vectorized/numeric.h"

namespace moe::cpu::MOE_ISA::routing {

// The values that are at least `threshold` and where they stand, in order; `count` is a multiple of 32. Returns how
// many there are; from most + 1 on, which is no more than there are, it stops. `found` and `places` hold most + 16.
static inline int64_t collect(const float* __restrict values, int64_t count, float threshold, int64_t most,
                              float* __restrict found, int32_t* __restrict places) {
  const __m256 limit = _mm256_set1_ps(threshold);
  const auto at_least = [&](int64_t i) {
    return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(_mm256_loadu_ps(values + i), limit, _CMP_GE_OQ)));
  };
  int64_t n = 0;
  for (int64_t i = 0; i < count; i += 32) {
    uint32_t left = at_least(i) | at_least(i + 8) << 8 | at_least(i + 16) << 16 | at_least(i + 24) << 24;
    for (; left != 0; left &= left - 1) {
      if (n > most) return n;
      const int64_t place = i + __builtin_ctz(left);
      found[n] = values[place];
      places[n] = static_cast<int32_t>(place);
      ++n;
    }
  }
  return n;
}

// x = 1 / x.
static inline void reciprocals(float* __restrict x, int64_t count) {
  for (int64_t i = 0; i < count; ++i) x[i] = 1.0f / x[i];
}

// out = x / divisor.
static inline void quotients(const float* __restrict x, float divisor, float* __restrict out, int64_t count) {
  for (int64_t i = 0; i < count; ++i) out[i] = x[i] / divisor;
}

}  // namespace moe::cpu::MOE_ISA::routing
