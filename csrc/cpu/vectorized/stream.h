// Stores past the caches, for results that are larger than these and are written once: a plain store first reads the
// line that it is going to overwrite.
#pragma once

#include <stdint.h>

#include "cpu/vectorized/numeric.h"

#ifdef __AVX__
#include <immintrin.h>
#endif

namespace moe::cpu::MOE_ISA {

#if defined(__AVX512F__)
static constexpr int64_t kStreamBytes = 64;
MOE_INLINE void stream_block(const float* from, float* to) { _mm512_stream_ps(to, _mm512_loadu_ps(from)); }
#elif defined(__AVX__)
static constexpr int64_t kStreamBytes = 32;
MOE_INLINE void stream_block(const float* from, float* to) { _mm256_stream_ps(to, _mm256_loadu_ps(from)); }
#endif

// Copies floats; finish_streams() must follow before another thread may look.
static inline void stream_run(const float* from, float* to, int64_t count) {
  int64_t done = 0;
#ifdef __AVX__
  constexpr int64_t kBlock = kStreamBytes / static_cast<int64_t>(sizeof(float));
  for (; done < count && reinterpret_cast<uintptr_t>(to + done) % kStreamBytes; ++done) to[done] = from[done];
  for (; done + kBlock <= count; done += kBlock) stream_block(from + done, to + done);
#endif
  for (; done < count; ++done) to[done] = from[done];
}

static inline void finish_streams() {
#ifdef __AVX__
  _mm_sfence();
#endif
}

}  // namespace moe::cpu::MOE_ISA
