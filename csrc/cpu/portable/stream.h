// No stores past the caches: plain ones.
#pragma once

#include <string.h>

#include "cpu/vectorized/stream.h"

namespace moe::cpu::MOE_ISA {

static void stream_run(const float* from, float* to, int64_t count) {
  memcpy(to, from, static_cast<size_t>(count) * sizeof(float));
}
static void finish_streams() {}

}  // namespace moe::cpu::MOE_ISA
