// ActivateBackwardEpilogue of a slice: reads the kept pre-activation, writes its gradient, the weighted activation and
// the partial sums of <product, activation>. Nothing for rows of no expert.
//
// A partial sum is formed in one order whatever the tile: a thread's own columns ascending, then lanes in a butterfly.
#pragma once

#include "cuda/common/activation.cuh"
#include "cuda/grouped_gemm/mxfp8.cuh"
#include "cuda/grouped_gemm/product.h"
#include "cuda/grouped_gemm/slice.cuh"
#include "cuda/grouped_gemm/swiglu.cuh"

namespace moe::cuda {

// What a run needs from memory, as it came from there.
template <class T, class Acc, int N>
struct KeptRun {
  T values[2 * N] = {};
  uint8_t codes[2 * N] = {};  // instead of values, with the scales of gate and up
  uint32_t scales[2] = {};
  Acc weight = 0;

  // `alternating`: gate and up take turns, as they do in memory.
  __device__ void decode(bool mxfp8, bool alternating, Acc (&gate)[N], Acc (&up)[N]) const {
    Acc flat[2 * N];
    if (mxfp8) {
      const float scale[2] = {value_of(scales[0]), value_of(scales[1])};
#pragma unroll
      for (int i = 0; i < 2 * N; ++i) {
        const float first = scale[i / N], second = scale[i % 2];
        flat[i] = from_e4m3(codes[i]) * (alternating ? second : first);
      }
    } else {
#pragma unroll
      for (int i = 0; i < 2 * N; ++i) flat[i] = to_acc(values[i]);
    }
#pragma unroll
    for (int i = 0; i < N; ++i) {
      gate[i] = alternating ? flat[2 * i] : flat[i];
      up[i] = alternating ? flat[2 * i + 1] : flat[N + i];
    }
  }
};

template <class T, int kRows, int kColumns, int kStride, int kThreads, class Acc>
__device__ void finish(const ActivateBackwardEpilogue& epilogue, const Acc* sums, const Slice& slice, int thread) {
  if (slice.expert < 0) return;
  if constexpr (kIsHalf<T>) {
    if (is_plain_swiglu(epilogue, slice, kColumns)) {
      return finish_swiglu<T, kRows, kColumns, kStride, kThreads>(epilogue, sums, slice, thread);
    }
  }
  with_vectors(epilogue.vector, [&]<class Vectors>(Vectors) {
    using R = Run<Acc, Vectors::value>;
    constexpr int N = R::kRun;
    const R run = R::template make<kColumns, kThreads>(slice.columns, thread);
    const Activator<T> activator(epilogue.rule);
    const RowLayout layout(activator.gated(), epilogue.interleaved, run.outputs);
    const bool mxfp8 = epilogue.preact_format == PreactFormat::kMxfp8, alternating = R::kVector && layout.step == 2;
    const int num_partials = (run.outputs + kPartialColumns - 1) / kPartialColumns;
    const int64_t first_row = slice.first_row + run.row;
    const int64_t width = layout.parts() * int64_t{run.outputs};
    const int64_t begin = first_row * width + layout.step * run.column;
    const T* preact = static_cast<const T*>(epilogue.preact) + begin;
    Mxfp8Run codes(const_cast<void*>(epilogue.preact), first_row, layout, run);
    T* grad_preact = static_cast<T*>(epilogue.grad_preact) + begin;
    T* act_scaled = static_cast<T*>(epilogue.act_scaled) + first_row * run.outputs + run.column;
    Acc* partials = static_cast<Acc*>(epilogue.partials) + first_row * num_partials + run.column / kPartialColumns;

    // What a row needs from memory is asked for while the row before it is worked on.
    KeptRun<T, Acc, N> kept, next;
    const auto prefetch = [&](int row) {
      if (row < slice.num_rows && run.any()) {
        if (mxfp8) {
          load_parts(codes.codes, layout, run, next.codes);
          next.scales[0] = codes.scale(0);
          if (layout.gated()) next.scales[1] = codes.scale(1);
        } else {
          load_parts(preact, layout, run, next.values);
        }
        next.weight =
            row_weight<Acc>(epilogue.topk_weights, epilogue.row_to_slot, epilogue.num_slots, slice.first_row + row);
      }
      codes.advance(run.row_step);
      preact += run.row_step * width;
    };
    prefetch(run.row);
    // Whole warps go around the loop together: lanes exchange sums.
#pragma unroll 1
    for (int first = 0; first < slice.num_rows; first += run.row_step) {
      const int row = first + run.row;
      const bool inside = row < slice.num_rows && run.any();
      kept = next;
      prefetch(row + run.row_step);
      Acc partial = 0;
      if (inside) {
        Acc product[N], z[2][N], grad[N], act[N], grad_z[2][N] = {};
        read_sums<kColumns>(sums + row * kStride, ColumnOrder::kPlain, run, product, grad);
        kept.decode(mxfp8, alternating, z[0], z[1]);
#pragma unroll
        for (int i = 0; i < N; ++i) grad[i] = product[i] * kept.weight;
        activator.backward(z[0], z[1], grad, act, grad_z[0], grad_z[1]);
        const Vector<T, N> gate = from_acc<T>(grad_z[0]), up = from_acc<T>(grad_z[1]);
        store_parts(grad_preact, layout, run, gate.values, up.values);
#pragma unroll
        for (int i = 0; i < N; ++i) {
          if (run.has(i)) partial = fma(product[i], act[i], partial);
        }
        if (epilogue.act_scaled) {
#pragma unroll
          for (int i = 0; i < N; ++i) act[i] *= kept.weight;
          store_run(act_scaled, run, act);
        }
      }
      if (epilogue.partials) {
#pragma unroll
        for (int lane = 1; lane < kPartialColumns / N; lane *= 2) {
          partial += __shfl_xor_sync(0xffffffff, partial, lane);
        }
        if (inside && run.column % kPartialColumns == 0) *partials = partial;
      }
      grad_preact += run.row_step * width;
      act_scaled += run.row_step * int64_t{run.outputs};
      partials += run.row_step * int64_t{num_partials};
    }
  });
}

}  // namespace moe::cuda
