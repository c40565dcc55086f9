// The transpose of a 16 x 16 block of 32-bit lanes, one lane at a time.
#pragma once

#include <cstring>

#include "cpu/vectorized/numeric.h"

namespace moe::cpu::MOE_ISA {

static inline void transpose16(const float* source, int64_t lds, float* target, int64_t ldt) {
  for (int64_t r = 0; r < 16; ++r) {
    for (int64_t c = 0; c < 16; ++c) memcpy(target + c * ldt + r, source + r * lds + c, sizeof(float));
  }
}

static inline void transpose16_rows(const float* const* rows, float* target, int64_t ldt) {
  for (int64_t r = 0; r < 16; ++r) {
    for (int64_t c = 0; c < 16; ++c) memcpy(target + c * ldt + r, rows[r] + c, sizeof(float));
  }
}

}  // namespace moe::cpu::MOE_ISA
