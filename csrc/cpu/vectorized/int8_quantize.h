// Rows of floats to int8: see moe/fused_experts_int8.h for the rule.
#pragma once

#include "cpu/int8_kernels.h"
#include "cpu/vectorized/numeric.h"

namespace moe::cpu::MOE_ISA {

// Magnitudes are compared as integers: so a NaN is larger than all others.
template <class T>
static int32_t largest_magnitude(const T* __restrict source, int64_t count) {
  int32_t largest = 0;
  for (int64_t i = 0; i < count; ++i) {
    const int32_t magnitude = bits_of(to_acc(source[i])) & 0x7fffffff;
    largest = magnitude > largest ? magnitude : largest;
  }
  return largest;
}

template <class T>
static void scale_to_int8(const T* __restrict source, int64_t count, float inverse, int8_t* __restrict target) {
  const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, left in the low bits
  for (int64_t i = 0; i < count; ++i) {
    target[i] = static_cast<int8_t>(bits_of(to_acc(source[i]) * inverse + magic) - bits_of(magic));
  }
}

template <class T>
static void quantize_rows_of(const Int8QuantizeParams& p, int64_t begin, int64_t end) {
  for (int64_t r = begin; r < end; ++r) {
    const T* source = static_cast<const T*>(p.source) + r * p.source_stride;
    int8_t* target = p.rows + r * p.row_stride;
    const int32_t largest = largest_magnitude(source, p.columns);
    float scale = float_of(largest) / 127.0f, inverse = 0.0f;
    if (largest >= 0x7f800000) {
      scale = __builtin_nanf("");
    } else if (bits_of(scale) < 1 << 23) {
      scale = 0.0f;
    } else {
      inverse = 1.0f / scale;
    }
    p.scales[r] = scale;
    if (inverse != 0.0f) {
      scale_to_int8(source, p.columns, inverse, target);
    } else {
      for (int64_t i = 0; i < p.columns; ++i) target[i] = 0;
    }
    for (int64_t i = p.columns; i < p.row_stride; ++i) target[i] = 0;
  }
}

static void quantize_rows(const Int8QuantizeParams& p, int64_t begin, int64_t end) {
  switch (p.dtype) {
    case DType::kFloat32:
      return quantize_rows_of<float>(p, begin, end);
    case DType::kBFloat16:
      return quantize_rows_of<bf16>(p, begin, end);
    case DType::kFloat16:
      return quantize_rows_of<fp16>(p, begin, end);
    case DType::kFloat64:  // refused before any kernel is called
      return;
  }
}

}  // namespace moe::cpu::MOE_ISA
