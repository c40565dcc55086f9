// Ways to read and write memory: one function for each, called on a buffer whose size is a multiple of 4 KiB.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstring>

#define TARGET(isa) __attribute__((target(isa)))

namespace limits {

constexpr std::size_t kLine = 64;
constexpr std::size_t kAhead = 512;  // bytes that are asked for before they are read
inline volatile long long read_sink;

// Reads eight lines at a time: from eight places at once, each asked for in time, or one after the other. The places
// are an odd number of lines apart, so that they don't meet in the same sets of a cache.
#define READ(name, isa, Vector, zero, combine, load)                                                       \
  template <bool many>                                                                                     \
  TARGET(isa)                                                                                              \
  void name(const char* data, std::size_t bytes) {                                                         \
    constexpr int kSums = 8, kParts = kLine / sizeof(Vector);                                              \
    Vector sums[kSums];                                                                                    \
    for (auto& sum : sums) sum = zero();                                                                   \
    const std::size_t lines = bytes / kLine / kSums;                                                       \
    const std::size_t apart = many ? (lines - 1 + lines % 2) * kLine : kLine;                              \
    const std::size_t step = many ? kLine : kSums * kLine, steps = many ? apart / kLine : lines;           \
    for (std::size_t i = 0; i < steps; ++i, data += step)                                                  \
      for (int s = 0; s < kSums; ++s) {                                                                    \
        const char* line = data + s * apart;                                                               \
        if (many) _mm_prefetch(line + kAhead, _MM_HINT_T0);                                                \
        for (int part = 0; part < kParts; ++part)                                                          \
          sums[s] = combine(sums[s], load(reinterpret_cast<const Vector*>(line + part * sizeof(Vector)))); \
      }                                                                                                    \
    for (int s = 1; s < kSums; ++s) sums[0] = combine(sums[0], sums[s]);                                   \
    long long first;                                                                                       \
    std::memcpy(&first, &sums[0], sizeof first);                                                           \
    read_sink = first;                                                                                     \
  }
READ(read_sse2, "sse2", __m128i, _mm_setzero_si128, _mm_xor_si128, _mm_load_si128)
READ(read_avx2, "avx2", __m256i, _mm256_setzero_si256, _mm256_xor_si256, _mm256_load_si256)
READ(read_avx512, "avx512f", __m512i, _mm512_setzero_si512, _mm512_xor_si512, _mm512_load_si512)
#undef READ

template <bool many>
inline void read(char* data, std::size_t bytes) {
  if (__builtin_cpu_supports("avx512f"))
    read_avx512<many>(data, bytes);
  else if (__builtin_cpu_supports("avx2"))
    read_avx2<many>(data, bytes);
  else
    read_sse2<many>(data, bytes);
}

inline void write(char* data, std::size_t bytes) {
  const __m128i value = _mm_set1_epi8(1);
  for (std::size_t i = 0; i < bytes; i += sizeof value) _mm_store_si128(reinterpret_cast<__m128i*>(data + i), value);
}

inline void write_past_caches(char* data, std::size_t bytes) {
  const __m128i value = _mm_set1_epi8(1);
  for (std::size_t i = 0; i < bytes; i += sizeof value) _mm_stream_si128(reinterpret_cast<__m128i*>(data + i), value);
  _mm_sfence();
}

inline void copy(char* data, std::size_t bytes) { std::memcpy(data + bytes / 2, data, bytes / 2); }

struct Way {
  const char* name;
  void (*run)(char* data, std::size_t bytes);
};

// `copy` moves as many bytes as the buffer has: half are read, half written.
inline const Way kWays[] = {
    {"read, 1 stream", read<false>},
    {"read, 8 streams", read<true>},
    {"write", write},
    {"write past caches", write_past_caches},
    {"memcpy", copy},
};

}  // namespace limits
