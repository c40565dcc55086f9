// Steps of route that gain from instructions of their own; here from none.
#pragma once

#include "cpu/vectorized/numeric.h"

namespace moe::cpu::MOE_ISA::routing {

// The values that are at least `threshold` and where they stand, in order. Returns how many there are; from
// most + 1 on, which is no more than there are, it stops. `found` and `places` hold most + 16.
static inline int64_t collect(const float* __restrict values, int64_t count, float threshold, int64_t most,
                              float* __restrict found, int32_t* __restrict places) {
  int64_t n = 0;
  for (int64_t i = 0; i < count && n <= most; ++i) {
    if (values[i] >= threshold) {
      found[n] = values[i];
      places[n] = static_cast<int32_t>(i);
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
