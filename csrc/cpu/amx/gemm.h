// bfloat16 products on AMX: which of the loops takes a job. What fits none of them, odd strides above all, goes through
// the loops of the other engines (vectorized/gemm_driver.h).
#pragma once

#include "cpu/amx/column_weights.h"
#include "cpu/amx/engine.h"
#include "cpu/amx/row_weights.h"
#include "cpu/amx/tiled_weights.h"
#include "cpu/amx/weight_gradient.h"

namespace moe::cpu::MOE_ISA {

// Sums continue in the tiles from one step of k to the next on every way, so which one a job takes changes no bit.
static void run_amx_gemm(const GemmJob& job, void* scratch) {
  if (TiledWeightGemm::takes(job)) {
    TiledWeightGemm(job, scratch).run();
  } else if (RowWeightGemm::takes(job)) {
    RowWeightGemm(job, scratch).run();
  } else if (ColumnWeightGemm::takes(job)) {
    ColumnWeightGemm(job, scratch).run();
  } else if (WeightGradientGemm::takes(job)) {
    WeightGradientGemm(job, scratch).run();
  } else {
    run_gemm<bf16, AmxEngine>(job, scratch);
  }
}

static int64_t amx_scratch_bytes(const GemmJob& job) {
  if (TiledWeightGemm::takes(job)) return TiledWeightGemm::scratch_bytes(job.m, job.k);
  if (RowWeightGemm::takes(job)) return RowWeightGemm::scratch_bytes(job.m, job.k);
  if (ColumnWeightGemm::takes(job)) return ColumnWeightGemm::scratch_bytes(job);
  if (WeightGradientGemm::takes(job)) return WeightGradientGemm::scratch_bytes(job.m, job.k);
  return gemm_scratch_bytes<AmxEngine>(job);
}

static int64_t amx_row_chunk(const GemmJob& job) {
  constexpr int64_t kMost = 512;
  const bool is_row_weight = TiledWeightGemm::takes(job) || RowWeightGemm::takes(job),
             is_column_weight = !is_row_weight && ColumnWeightGemm::takes(job);
  if (is_column_weight && ColumnWeightGemm::loads_rows_directly(job)) return kMost;
  if (is_row_weight || is_column_weight) {
    // What is packed of the rows stays in the L2 cache while the weights pass by.
    constexpr int64_t kElements = int64_t{640} << 10, kFewest = 64;
    const int64_t rows = kElements / (steps_of(job.k) * kStepK) / kPanel * kPanel;
    return rows < kFewest ? kFewest : smaller(rows, kMost);
  }
  if (WeightGradientGemm::takes(job)) return WeightGradientGemm::row_chunk(job.k);
  return gemm_row_chunk<AmxEngine>(job);
}

template <>
constexpr GemmKernel gemm_kernel<bf16, AmxEngine>() {
  return {run_amx_gemm, amx_scratch_bytes, amx_row_chunk, kPanel};
}

}  // namespace moe::cpu::MOE_ISA
