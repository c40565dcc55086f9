// Vectors of 16 bytes in the compiler's own vector types: what every machine can do.
#pragma once

#include <cstring>

#include "cpu/vectorized/numeric.h"

namespace moe::cpu::MOE_ISA {

template <class Scalar>
struct NativeVector {
  using Lane = Scalar;
  using Acc = Scalar;
  static constexpr int kWidth = 16 / sizeof(Scalar);
  typedef Scalar Value __attribute__((vector_size(16)));
  Value value = Value{};

  static NativeVector load(const Scalar* from) {
    NativeVector result;
    memcpy(&result.value, from, 16);
    return result;
  }
  static NativeVector load_sum(const Scalar* from) { return load(from); }
  static NativeVector broadcast(const Scalar* from) {
    NativeVector result;
    result.value = *from - Value{};
    return result;
  }
  void multiply_add(const NativeVector& a, const NativeVector& b) { value += a.value * b.value; }
  void add(const NativeVector& other) { value += other.value; }
  void store_sum(Scalar* to) const { memcpy(to, &value, 16); }
};

}  // namespace moe::cpu::MOE_ISA
