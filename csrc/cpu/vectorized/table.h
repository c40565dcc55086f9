// Fills an ISA's table. Included last by csrc/cpu/<isa>/kernels.cpp, which gives the matrix product of each dtype.
#pragma once

#include "cpu/kernel_table.h"
#include "cpu/vectorized/combine.h"
#include "cpu/vectorized/dot.h"
#include "cpu/vectorized/gemm_driver.h"
#include "cpu/vectorized/noise.h"
#include "cpu/vectorized/route.h"
#include "cpu/vectorized/sinkhorn.h"
#include "cpu/vectorized/soft.h"

namespace moe::cpu::MOE_ISA {

static constexpr KernelTable kernel_table(GemmKernel float32, GemmKernel bfloat16, GemmKernel float16,
                                          GemmKernel float64) {
  return {
      .route_forward = route_forward,
      .route_backward = route_backward,
      .combine_forward = combine_forward,
      .combine_backward = combine_backward,
      .segment_sum = segment_sum,
      .dot = dot,
      .noise = noise,
      .sinkhorn_exponentiate = sinkhorn_exponentiate,
      .sinkhorn_add_columns = sinkhorn_add_columns,
      .sinkhorn_scale = sinkhorn_scale,
      .soft_forward = soft_forward,
      .soft_weights = soft_weights,
      .soft_deltas = soft_deltas,
      .gemm = {float32, bfloat16, float16, float64},
  };
}

}  // namespace moe::cpu::MOE_ISA
