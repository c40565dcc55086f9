// Arithmetic that never leaves the registers: one function for each unit of the CPU, each doing `passes` times the
// same number of operations. A function is compiled for its unit and may be called only where `present` says so.
#pragma once

#include <asm/prctl.h>
#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>

#define TARGET(isa) __attribute__((target(isa)))

namespace limits {

inline volatile float sink;

TARGET("avx2,fma") inline void fma_avx2(long passes) {
  constexpr int kSums = 12;  // of 16 registers; latency times ports is at most 10
  __m256 sums[kSums], factor = _mm256_set1_ps(0.5f), term = _mm256_set1_ps(0.25f);
  for (auto& sum : sums) sum = term;
  for (long pass = 0; pass < passes; ++pass)
    for (auto& sum : sums) sum = _mm256_fmadd_ps(sum, factor, term);
  for (int i = 1; i < kSums; ++i) sums[0] = _mm256_add_ps(sums[0], sums[i]);
  sink = _mm256_cvtss_f32(sums[0]);
}

TARGET("avx512f") inline void fma_avx512(long passes) {
  constexpr int kSums = 16;
  __m512 sums[kSums], factor = _mm512_set1_ps(0.5f), term = _mm512_set1_ps(0.25f);
  for (auto& sum : sums) sum = term;
  for (long pass = 0; pass < passes; ++pass)
    for (auto& sum : sums) sum = _mm512_fmadd_ps(sum, factor, term);
  for (int i = 1; i < kSums; ++i) sums[0] = _mm512_add_ps(sums[0], sums[i]);
  sink = _mm512_cvtss_f32(sums[0]);
}

TARGET("avx512f,avx512bf16") inline void dot_avx512bf16(long passes) {
  constexpr int kSums = 16;
  __m512 sums[kSums];
  const __m512bh a = _mm512_cvtne2ps_pbh(_mm512_set1_ps(0.5f), _mm512_set1_ps(-0.5f));
  const __m512bh b = _mm512_cvtne2ps_pbh(_mm512_set1_ps(1.0f), _mm512_set1_ps(1.0f));
  for (auto& sum : sums) sum = _mm512_setzero_ps();
  for (long pass = 0; pass < passes; ++pass)
    for (auto& sum : sums) sum = _mm512_dpbf16_ps(sum, a, b);
  for (int i = 1; i < kSums; ++i) sums[0] = _mm512_add_ps(sums[0], sums[i]);
  sink = _mm512_cvtss_f32(sums[0]);
}

TARGET("avx512f,avx512vnni") inline void dot_avx512vnni(long passes) {
  constexpr int kSums = 16;
  __m512i sums[kSums];
  const __m512i a = _mm512_set1_epi8(1), b = _mm512_set1_epi32(0x01ff01ff);
  for (auto& sum : sums) sum = _mm512_setzero_si512();
  for (long pass = 0; pass < passes; ++pass)
    for (auto& sum : sums) sum = _mm512_dpbusd_epi32(sum, a, b);
  for (int i = 1; i < kSums; ++i) sums[0] = _mm512_add_epi32(sums[0], sums[i]);
  sink = static_cast<float>(_mm_cvtsi128_si32(_mm512_castsi512_si128(sums[0])));
}

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t column_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// Two tiles by two tiles into four sums, the register blocking of a GEMM.
#define AMX_PEAK(name, isa, product, pattern)                                  \
  TARGET(isa) inline void name(long passes) {                                  \
    const TileConfig config;                                                   \
    alignas(64) uint32_t operand[256];                                         \
    for (int i = 0; i < 256; ++i) operand[i] = (i & 1) ? pattern : ~(pattern); \
    _tile_loadconfig(&config);                                                 \
    _tile_zero(0);                                                             \
    _tile_zero(1);                                                             \
    _tile_zero(2);                                                             \
    _tile_zero(3);                                                             \
    _tile_loadd(4, operand, 64);                                               \
    _tile_loadd(5, operand, 64);                                               \
    _tile_loadd(6, operand, 64);                                               \
    _tile_loadd(7, operand, 64);                                               \
    for (long pass = 0; pass < passes; ++pass) {                               \
      product(0, 4, 6);                                                        \
      product(1, 4, 7);                                                        \
      product(2, 5, 6);                                                        \
      product(3, 5, 7);                                                        \
    }                                                                          \
    _tile_stored(0, operand, 64);                                              \
    _tile_release();                                                           \
    sink = static_cast<float>(operand[0]);                                     \
  }
AMX_PEAK(dot_amx_bf16, "amx-tile,amx-bf16", _tile_dpbf16ps, 0x3f00bf00u)
AMX_PEAK(dot_amx_int8, "amx-tile,amx-int8", _tile_dpbssd, 0x12345678u)
#undef AMX_PEAK

// Linux gives the tiles' 8 KiB of state only to who asks for it.
inline bool amx_present(unsigned bit_of_edx) {
  unsigned eax, ebx, ecx, edx;
  constexpr int kTileData = 18, kRequestPermission = 0x1023;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return false;
  constexpr unsigned kTile = 1u << 24;
  return (edx & kTile) && (edx >> bit_of_edx & 1) && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

struct Unit {
  const char* name;
  bool (*present)();
  void (*run)(long passes);
  double operations;  // of one pass; a multiply-add is two
};

inline const Unit kUnits[] = {
    {"avx2 fp32", [] { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }, fma_avx2, 12 * 8 * 2},
    {"avx512 fp32", [] { return __builtin_cpu_supports("avx512f") != 0; }, fma_avx512, 16 * 16 * 2},
    {"avx512 bf16", [] { return __builtin_cpu_supports("avx512bf16") != 0; }, dot_avx512bf16, 16 * 32 * 2},
    {"avx512 int8", [] { return __builtin_cpu_supports("avx512vnni") != 0; }, dot_avx512vnni, 16 * 64 * 2},
    {"amx bf16", [] { return amx_present(22); }, dot_amx_bf16, 4.0 * 16 * 16 * 32 * 2},
    {"amx int8", [] { return amx_present(25); }, dot_amx_int8, 4.0 * 16 * 16 * 64 * 2},
};

}  // namespace limits
