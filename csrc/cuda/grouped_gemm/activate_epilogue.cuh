// ActivateEpilogue of a slice: z = weight * sums + bias is kept on request, activation(z) stored. Rows of no expert get
// zeros.
#pragma once

#include "cuda/common/activation.cuh"
#include "cuda/grouped_gemm/mxfp8.cuh"
#include "cuda/grouped_gemm/product.h"
#include "cuda/grouped_gemm/slice.cuh"
#include "cuda/grouped_gemm/swiglu.cuh"

namespace moe::cuda {

template <class T, int kRows, int kColumns, int kStride, int kThreads, class Acc>
__device__ void finish(const ActivateEpilogue& epilogue, const Acc* sums, const Slice& slice, int thread) {
  if constexpr (kIsHalf<T>) {
    if (is_plain_swiglu(epilogue, slice, kColumns / 2)) {
      return finish_swiglu<T, kRows, kColumns, kStride, kThreads>(epilogue, sums, slice, thread);
    }
  }
  with_vectors(epilogue.vector, [&]<class Vectors>(Vectors) {
    using R = Run<Acc, Vectors::value>;
    constexpr int N = R::kRun;
    const R run = R::template make<kColumns, kThreads>(slice.columns, thread);
    const Activator<T> activator(epilogue.rule);
    const RowLayout layout(activator.gated(), epilogue.interleaved, run.outputs);
    const bool computed = slice.expert >= 0, mxfp8 = epilogue.preact_format == PreactFormat::kMxfp8;
    Acc bias[2][N] = {};
    if (epilogue.bias && computed) {
      const T* source = static_cast<const T*>(epilogue.bias) + slice.expert * epilogue.bias_expert_stride;
#pragma unroll
      for (int i = 0; i < N; ++i) {
        if (!run.has(i)) continue;
        const int64_t at = layout.step * (run.column + i * R::kStep);
        bias[0][i] = to_acc(source[at * epilogue.bias_stride]);
        if (layout.gated()) bias[1][i] = to_acc(source[(at + layout.up) * epilogue.bias_stride]);
      }
    }
    const int64_t first_row = slice.first_row + run.row;
    const int64_t width = layout.parts() * int64_t{run.outputs};
    Mxfp8Run codes(epilogue.preact, first_row, layout, run);
    T* preact = static_cast<T*>(epilogue.preact) + first_row * width + layout.step * run.column;
    T* act = static_cast<T*>(epilogue.act) + first_row * run.outputs + run.column;

    // Whole warps go around the loop together: lanes that share an MXFP8 scale exchange values.
#pragma unroll 1
    for (int first = 0; first < slice.num_rows; first += run.row_step) {
      const int row = first + run.row;
      const bool inside = row < slice.num_rows && run.any();
      Acc z[2][N] = {};
      if (computed && inside) {
        read_sums<kColumns>(sums + row * kStride, slice.columns.order, run, z[0], z[1]);
        if (epilogue.topk_weights) {
          const Acc weight =
              row_weight<Acc>(epilogue.topk_weights, epilogue.row_to_slot, epilogue.num_slots, slice.first_row + row);
#pragma unroll
          for (int i = 0; i < N; ++i) z[0][i] *= weight, z[1][i] *= weight;
        }
        if (epilogue.bias) {
#pragma unroll
          for (int i = 0; i < N; ++i) z[0][i] += bias[0][i], z[1][i] += bias[1][i];
        }
      }
      if (epilogue.preact) {
        if (mxfp8) {
          codes.encode(layout, run, z, inside);
        } else if (inside) {
          const Vector<T, N> gate = from_acc<T>(z[0]), up = from_acc<T>(z[1]);
          store_parts(preact, layout, run, gate.values, up.values);
        }
      }
      if (epilogue.act && inside) {
        Acc value[N] = {};
        if (computed) activator.forward(z[0], z[1], value);
        store_run(act, run, value);
      }
      codes.advance(run.row_step);
      preact += run.row_step * width;
      act += run.row_step * int64_t{run.outputs};
    }
  });
}

}  // namespace moe::cuda
