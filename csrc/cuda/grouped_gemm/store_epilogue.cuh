// StoreEpilogue of a slice: out = sums + bias. Rows of no expert get zeros.
#pragma once

#include "cuda/grouped_gemm/product.h"
#include "cuda/grouped_gemm/slice.cuh"

namespace moe::cuda {

template <class T, int kRows, int kColumns, int kStride, int kThreads, class Acc>
__device__ void finish(const StoreEpilogue& epilogue, const Acc* sums, const Slice& slice, int thread) {
  using R = Run<Acc>;
  const R run = R::template make<kColumns, kThreads>(slice.columns, epilogue.vector, thread);
  if (!run.any()) return;
  Acc bias[R::kRun] = {}, none[R::kRun];
  if (epilogue.bias && slice.expert >= 0) {
    const T* source = static_cast<const T*>(epilogue.bias) + slice.expert * epilogue.bias_expert_stride;
#pragma unroll
    for (int i = 0; i < R::kRun; ++i) {
      if (run.has(i)) bias[i] = to_acc(source[(run.column + i * run.step) * epilogue.bias_stride]);
    }
  }
  for (int row = run.row; row < slice.num_rows; row += run.row_step) {
    Acc value[R::kRun] = {};
    if (slice.expert >= 0) {
      read_sums<kColumns>(sums + row * kStride, ColumnOrder::kPlain, run, value, none);
#pragma unroll
      for (int i = 0; i < R::kRun; ++i) value[i] += bias[i];
    }
    store_run(static_cast<T*>(epilogue.out) + (slice.first_row + row) * epilogue.out_stride, run, value);
  }
}

}  // namespace moe::cuda
