// ActivateEpilogue of a slice: z = weight * sums + bias is kept on request, activation(z) stored. Rows of no expert get
// zeros.
#pragma once

#include "cuda/common/activation.cuh"
#include "cuda/grouped_gemm/mxfp8.cuh"
#include "cuda/grouped_gemm/product.h"
#include "cuda/grouped_gemm/slice.cuh"

namespace moe::cuda {

template <class T, int kRows, int kColumns, int kStride, int kThreads, class Acc>
__device__ void finish(const ActivateEpilogue& epilogue, const Acc* sums, const Slice& slice, int thread) {
  using R = Run<Acc>;
  constexpr int N = R::kRun;
  const R run = R::template make<kColumns, kThreads>(slice.columns, epilogue.vector, thread);
  const ColumnOrder order = slice.columns.order;
  const Activator<T> activator(epilogue.rule);
  const RowLayout layout(activator.gated(), epilogue.interleaved, run.outputs);
  const bool computed = slice.expert >= 0;
  Acc bias[2][N] = {};
  if (epilogue.bias && computed) {
    const T* source = static_cast<const T*>(epilogue.bias) + slice.expert * epilogue.bias_expert_stride;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      if (!run.has(i)) continue;
      const int64_t at = layout.step * (run.column + i * run.step);
      bias[0][i] = to_acc(source[at * epilogue.bias_stride]);
      if (layout.gated()) bias[1][i] = to_acc(source[(at + layout.up) * epilogue.bias_stride]);
    }
  }
  // Whole warps go around the loop together: lanes that share an MXFP8 scale exchange values.
  for (int first = 0; first < slice.num_rows; first += run.row_step) {
    const int row = first + run.row;
    const int64_t sorted_row = slice.first_row + row;
    const bool inside = row < slice.num_rows;
    Acc gate[N] = {}, up[N] = {}, act[N] = {};
    if (computed && inside && run.any()) {
      const Acc weight = row_weight<Acc>(epilogue.topk_weights, epilogue.row_to_slot, epilogue.num_slots, sorted_row);
      read_sums<kColumns>(sums + row * kStride, order, run, gate, up);
#pragma unroll
      for (int i = 0; i < N; ++i) {
        gate[i] = gate[i] * weight + bias[0][i];
        up[i] = up[i] * weight + bias[1][i];
      }
    }
    if (epilogue.preact && epilogue.preact_format == PreactFormat::kMxfp8) {
      const Mxfp8Row target(epilogue.preact, sorted_row, layout, run.outputs);
      target.encode(layout, run, gate, up, inside);
    } else if (epilogue.preact && inside) {
      const int64_t width = (layout.gated() ? 2 : 1) * static_cast<int64_t>(run.outputs);
      store_parts(static_cast<T*>(epilogue.preact) + sorted_row * width, layout, run, gate, up);
    }
    if (epilogue.act && inside) {
      if (computed) activator.forward(gate, up, act);
      store_run(static_cast<T*>(epilogue.act) + sorted_row * run.outputs, run, act);
    }
  }
}

}  // namespace moe::cuda
