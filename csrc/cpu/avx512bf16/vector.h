// Sixteen pairs of bfloat16 multiplied into sixteen float sums.
#pragma once

#include "cpu/avx512/vector.h"

namespace moe::cpu::MOE_ISA {

struct EightPairs : EightFloats {
  EightPairs() = default;
  explicit EightPairs(const EightFloats& pairs) : EightFloats(pairs) {}
  static EightPairs load(const float* from) { return EightPairs(EightFloats::load(from)); }
  static EightPairs broadcast(const float* from) { return EightPairs(EightFloats::broadcast(from)); }
  void multiply_add(const EightPairs& a, const EightPairs& b) {
    value = _mm256_dpbf16_ps(value, (__m256bh)a.value, (__m256bh)b.value);
  }
};

struct Bf16PairVector {
  using Lane = float;  // a pair, moved about as 32 bits
  using Acc = float;
  using Half = EightPairs;
  static constexpr int kWidth = 16;
  __m512 value = _mm512_setzero_ps();

  Bf16PairVector() = default;
  explicit Bf16PairVector(__m512 v) : value(v) {}
  static Bf16PairVector load(const float* from) { return Bf16PairVector(_mm512_loadu_ps(from)); }
  static Bf16PairVector load_sum(const float* from) { return load(from); }
  static Bf16PairVector broadcast(const float* from) { return Bf16PairVector(_mm512_set1_ps(*from)); }
  void multiply_add(const Bf16PairVector& a, const Bf16PairVector& b) {
    value = _mm512_dpbf16_ps(value, (__m512bh)a.value, (__m512bh)b.value);
  }
  void add(const Bf16PairVector& other) { value += other.value; }
  void store_sum(float* to) const { _mm512_storeu_ps(to, value); }
};

}  // namespace moe::cpu::MOE_ISA
