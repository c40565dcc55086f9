// StoreEpilogue of a slice: out = sums + bias. Rows of no expert get zeros.
#pragma once

#include "cuda/grouped_gemm/product.h"
#include "cuda/grouped_gemm/slice.cuh"

namespace moe::cuda {

template <class T, int kRows, int kColumns, int kStride, int kThreads, class Acc>
__device__ void finish(const StoreEpilogue& epilogue, const Acc* sums, const Slice& slice, int thread) {
  with_vectors(epilogue.vector, [&]<class Vectors>(Vectors) {
    using R = Run<Acc, Vectors::value>;
    const R run = R::template make<kColumns, kThreads>(slice.columns, thread);
    if (!run.any()) return;
    Acc bias[R::kRun] = {}, none[R::kRun];
    if (epilogue.bias && slice.expert >= 0) {
      const T* source = static_cast<const T*>(epilogue.bias) + slice.expert * epilogue.bias_expert_stride;
#pragma unroll
      for (int i = 0; i < R::kRun; ++i) {
        if (run.has(i)) bias[i] = to_acc(source[(run.column + i * R::kStep) * epilogue.bias_stride]);
      }
    }
    T* out = static_cast<T*>(epilogue.out) + (slice.first_row + run.row) * epilogue.out_stride + run.column;
    for (int row = run.row; row < slice.num_rows; row += run.row_step, out += run.row_step * epilogue.out_stride) {
      Acc value[R::kRun] = {};
      if (slice.expert >= 0) {
        read_sums<kColumns>(sums + row * kStride, ColumnOrder::kPlain, run, value, none);
#pragma unroll
        for (int i = 0; i < R::kRun; ++i) value[i] += bias[i];
      }
      store_run(out, run, value);
    }
  });
}

}  // namespace moe::cuda
