// ActivateBackwardEpilogue of a slice: reads the kept pre-activation, writes its gradient, the weighted activation and
// the partial sums of <product, activation>. Nothing for rows of no expert.
//
// A partial sum is formed in one order whatever the tile: a thread's own columns ascending, then lanes in a butterfly.
#pragma once

#include "cuda/common/activation.cuh"
#include "cuda/grouped_gemm/mxfp8.cuh"
#include "cuda/grouped_gemm/product.h"
#include "cuda/grouped_gemm/slice.cuh"

namespace moe::cuda {

// The stored pre-activation of a run, as it came from memory.
template <class T, int N>
struct KeptRun {
  Vector<T, 2 * N> values;       // gate then up, or alternating
  Vector<uint8_t, 2 * N> codes;  // the same as MXFP8, with the scales of both
  uint32_t scale[2];
};

template <class T, class Acc, int N>
__device__ void load_kept(const ActivateBackwardEpilogue& epilogue, int64_t sorted_row, const RowLayout& layout,
                          const Run<Acc>& run, KeptRun<T, N>& kept) {
  // V is T, or a byte.
  const auto load_parts = [&]<class V>(const V* row, Vector<V, 2 * N>& values) {
    if (run.vector() && layout.step == 2) {
      values = load<2 * N>(row + 2 * run.column);
      return;
    }
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      if (part == 1 && !layout.gated()) break;
      const V* source = row + part * layout.up;
      if (run.vector()) {
        const Vector<V, N> half = load<N>(source + run.column);
#pragma unroll
        for (int i = 0; i < N; ++i) values.values[part * N + i] = half.values[i];
      } else {
#pragma unroll
        for (int i = 0; i < N; ++i) {
          values.values[part * N + i] = run.has(i) ? source[layout.step * (run.column + i * run.step)] : V();
        }
      }
    }
  };
  if (epilogue.preact_format == PreactFormat::kMxfp8) {
    const Mxfp8Row source(epilogue.preact, sorted_row, layout, run.outputs);
    load_parts(source.codes(), kept.codes);
    kept.scale[0] = source.scale(0, run.column);
    if (layout.gated()) kept.scale[1] = source.scale(1, run.column);
  } else {
    const int64_t width = (layout.gated() ? 2 : 1) * static_cast<int64_t>(run.outputs);
    load_parts(static_cast<const T*>(epilogue.preact) + sorted_row * width, kept.values);
  }
}

// `alternating`: gate and up take turns in the registers, as they do in memory.
template <class T, class Acc, int N>
__device__ void decode_kept(const KeptRun<T, N>& kept, bool mxfp8, bool alternating, Acc (&gate)[N], Acc (&up)[N]) {
  Acc flat[2 * N];
  if (mxfp8) {
    const float scale[2] = {value_of(kept.scale[0]), value_of(kept.scale[1])};
#pragma unroll
    for (int i = 0; i < 2 * N; ++i) {
      const float first = scale[i / N], second = scale[i % 2];
      flat[i] = from_e4m3(kept.codes.values[i]) * (alternating ? second : first);
    }
  } else {
    to_acc(kept.values, flat);
  }
#pragma unroll
  for (int i = 0; i < N; ++i) {
    gate[i] = alternating ? flat[2 * i] : flat[i];
    up[i] = alternating ? flat[2 * i + 1] : flat[N + i];
  }
}

template <class T, int kRows, int kColumns, int kStride, int kThreads, class Acc>
__device__ void finish(const ActivateBackwardEpilogue& epilogue, const Acc* sums, const Slice& slice, int thread) {
  if (slice.expert < 0) return;
  using R = Run<Acc>;
  constexpr int N = R::kRun;
  const R run = R::template make<kColumns, kThreads>(slice.columns, epilogue.vector, thread);
  const Activator<T> activator(epilogue.rule);
  const RowLayout layout(activator.gated(), epilogue.interleaved, run.outputs);
  const bool mxfp8 = epilogue.preact_format == PreactFormat::kMxfp8;
  const int64_t width = (layout.gated() ? 2 : 1) * static_cast<int64_t>(run.outputs);
  const int num_partials = (run.outputs + kPartialColumns - 1) / kPartialColumns;

  // What a row needs from memory is asked for while the row before it is worked on.
  KeptRun<T, N> kept = {}, next_kept = {};
  Acc weight = 0, next_weight = 0;
  const auto prefetch = [&](int row) {
    if (row >= slice.num_rows || !run.any()) return;
    load_kept(epilogue, slice.first_row + row, layout, run, next_kept);
    next_weight =
        row_weight<Acc>(epilogue.topk_weights, epilogue.row_to_slot, epilogue.num_slots, slice.first_row + row);
  };
  prefetch(run.row);
  // Whole warps go around the loop together: lanes exchange sums.
#pragma unroll 1
  for (int first = 0; first < slice.num_rows; first += run.row_step) {
    const int row = first + run.row;
    const int64_t sorted_row = slice.first_row + row;
    const bool inside = row < slice.num_rows && run.any();
    kept = next_kept, weight = next_weight;
    prefetch(row + run.row_step);
    Acc partial = 0;
    if (inside) {
      Acc product[N], gate[N], up[N], grad[N], act[N], grad_gate[N], grad_up[N];
      read_sums<kColumns>(sums + row * kStride, ColumnOrder::kPlain, run, product, grad);
      decode_kept(kept, mxfp8, run.vector() && layout.step == 2, gate, up);
#pragma unroll
      for (int i = 0; i < N; ++i) grad[i] = product[i] * weight;
      activator.backward(gate, up, grad, act, grad_gate, grad_up);
      store_parts(static_cast<T*>(epilogue.grad_preact) + sorted_row * width, layout, run, grad_gate, grad_up);
#pragma unroll
      for (int i = 0; i < N; ++i) partial += run.has(i) ? product[i] * act[i] : Acc(0);
      if (epilogue.act_scaled) {
#pragma unroll
        for (int i = 0; i < N; ++i) act[i] *= weight;
        store_run(static_cast<T*>(epilogue.act_scaled) + sorted_row * run.outputs, run, act);
      }
    }
    if (!epilogue.partials) continue;
#pragma unroll
    for (int lane = 1; lane < kPartialColumns / N; lane *= 2) partial += __shfl_xor_sync(0xffffffff, partial, lane);
    if (inside && run.column % kPartialColumns == 0) {
      static_cast<Acc*>(epilogue.partials)[sorted_row * num_partials + run.column / kPartialColumns] = partial;
    }
  }
}

}  // namespace moe::cuda
