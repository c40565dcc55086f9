// Dot products with a summation order that is the same on every instruction set.
#pragma once

#include "cpu/vectorized/numeric.h"

namespace moe::cpu::MOE_ISA {

template <class T>
static acc_t<T> dot_product(const T* a, int64_t a_stride, const T* b, int64_t b_stride, int64_t size) {
  using A = acc_t<T>;
  A sums[16] = {};
  for (int64_t i = 0; i < size; ++i) sums[i % 16] += to_acc(a[i * a_stride]) * to_acc(b[i * b_stride]);
  A sum = 0;
  for (A lane : sums) sum += lane;
  return sum;
}

static void dot(DType dtype, const void* a, int64_t a_stride, const void* b, int64_t b_stride, int64_t size,
                void* out) {
  const auto run = [&]<class T>(T) {
    *static_cast<acc_t<T>*>(out) =
        dot_product(static_cast<const T*>(a), a_stride, static_cast<const T*>(b), b_stride, size);
  };
  switch (dtype) {
    case DType::kFloat32:
      return run(float{});
    case DType::kBFloat16:
      return run(bf16{});
    case DType::kFloat16:
      return run(fp16{});
    case DType::kFloat64:
      return run(double{});
  }
}

}  // namespace moe::cpu::MOE_ISA
