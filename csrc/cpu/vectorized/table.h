// Fills an ISA's table. Included last by csrc/cpu/<isa>/kernels.cpp, which names its engines: float32 and float16 go
// through the float engine, bfloat16 through the pair engine where there is one, float64 through a plain path.
#pragma once

#include "cpu/kernel_table.h"
#include "cpu/vectorized/combine.h"
#include "cpu/vectorized/dot.h"
#include "cpu/vectorized/gemm_driver.h"
#include "cpu/vectorized/route.h"

namespace moe::cpu::MOE_ISA {

template <class FloatEngine, class Bf16Engine, class DoubleEngine>
static constexpr KernelTable kernel_table() {
  return {
      .route_forward = route_forward,
      .route_backward = route_backward,
      .combine_forward = combine_forward,
      .combine_backward = combine_backward,
      .segment_sum = segment_sum,
      .dot = dot,
      .gemm = {gemm_kernel<float, FloatEngine>(), gemm_kernel<bf16, Bf16Engine>(), gemm_kernel<fp16, FloatEngine>(),
               gemm_kernel<double, DoubleEngine>()},
  };
}

}  // namespace moe::cpu::MOE_ISA
