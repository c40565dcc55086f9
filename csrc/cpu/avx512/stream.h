// Stores past the caches, 64 bytes at a time.
#pragma once

#include <immintrin.h>

#include "cpu/vectorized/stream.h"

namespace moe::cpu::MOE_ISA {

static void stream_run(const float* from, float* to, int64_t count) {
  constexpr int64_t kBytes = 64, kBlock = kBytes / static_cast<int64_t>(sizeof(float));
  int64_t done = 0;
  for (; done < count && reinterpret_cast<uintptr_t>(to + done) % kBytes; ++done) to[done] = from[done];
  for (; done + kBlock <= count; done += kBlock) _mm512_stream_ps(to + done, _mm512_loadu_ps(from + done));
  for (; done < count; ++done) to[done] = from[done];
}
static void finish_streams() { _mm_sfence(); }

}  // namespace moe::cpu::MOE_ISA
