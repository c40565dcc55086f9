// A finished part of a tile in shared memory, and how threads share it.
//
// A thread takes a run of kRun output columns (16 bytes of sums) in every row_step-th row. Neighbouring threads have
// neighbouring runs, so a warp reads shared memory without conflicts and touches whole sectors of global memory. Where
// sizes or addresses don't allow vectors, the columns of a run stand kLanes apart, so that single elements are
// coalesced too. Either way kLanes threads share 32 columns, and which columns they are doesn't depend on the tile.
#pragma once

#include "cuda/common/numeric.cuh"
#include "cuda/grouped_gemm/columns.h"

namespace moe::cuda {

struct Slice {
  int32_t expert;       // -1: rows of no expert
  int64_t first_row;    // sorted row of slice row 0
  int32_t num_rows;     // valid rows
  TileColumns columns;  // columns.first: first output column of the slice, a multiple of 32
};

template <class Acc>
struct Run {
  static constexpr int kRun = 16 / sizeof(Acc);
  static constexpr int kLanes = 32 / kRun;

  int row, row_step;  // in the slice
  int local;          // column of the run's first element in the slice
  int column, step;   // element i is output column + i * step
  int outputs;

  // kColumns tile columns in all, two of them per output in an order with pairs.
  template <int kColumns, int kThreads>
  static __device__ Run make(const TileColumns& columns, bool vector, int thread) {
    constexpr int kPlain = kColumns / kRun, kPaired = kPlain / 2;  // threads for one row
    static_assert(kColumns % 64 == 0 && kThreads % kPlain == 0 && kThreads % 32 == 0);
    const bool paired = columns.order != ColumnOrder::kPlain;
    const int place = thread % (paired ? kPaired : kPlain);
    Run run;
    run.row = thread / (paired ? kPaired : kPlain);
    run.row_step = kThreads / (paired ? kPaired : kPlain);
    run.step = vector ? 1 : kLanes;
    run.local = vector ? place * kRun : place / kLanes * 32 + place % kLanes;
    run.column = columns.first + run.local;
    run.outputs = columns.outputs();
    return run;
  }

  __device__ bool vector() const { return step == 1; }
  // With vectors the run is in or out as a whole.
  __device__ bool has(int i) const { return column + i * step < outputs; }
  __device__ bool any() const { return has(0); }
};

// The sums of a run. `up` is only written in an order with pairs.
template <int kColumns, class Acc, int N>
__device__ void read_sums(const Acc* row, ColumnOrder order, const Run<Acc>& run, Acc (&gate)[N], Acc (&up)[N]) {
  if (!run.vector()) {
    const int scale = order == ColumnOrder::kInterleaved ? 2 : 1, offset = scale == 2 ? 1 : kColumns / 2;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const int at = (run.local + i * run.step) * scale;
      gate[i] = row[at];
      if (order != ColumnOrder::kPlain) up[i] = row[at + offset];
    }
  } else if (order != ColumnOrder::kInterleaved) {
    to_acc(load<N>(row + run.local), gate);
    if (order == ColumnOrder::kSplit) to_acc(load<N>(row + kColumns / 2 + run.local), up);
  } else {
    // Two vectors per thread. Half of each eight threads read the second one first, or they would meet in the banks.
    const int swap = run.local / N / 4 % 2;
    Acc first[N], second[N];
    to_acc(load<N>(row + 2 * run.local + swap * N), first);
    to_acc(load<N>(row + 2 * run.local + (1 - swap) * N), second);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const Acc low = swap ? second[i] : first[i], high = swap ? first[i] : second[i];
      (i % 2 == 0 ? gate : up)[i / 2] = low;
      (i % 2 == 0 ? gate : up)[N / 2 + i / 2] = high;
    }
  }
}

// Where gate and up of an output column stand in a row [G]: the weight's own order. Ungated, there is no up.
struct RowLayout {
  int step, up;

  __device__ RowLayout(bool gated, bool interleaved, int outputs)
      : step(gated && interleaved ? 2 : 1),
        up(!gated        ? 0
           : interleaved ? 1
                         : outputs) {}
  __device__ bool gated() const { return up != 0; }
};

template <class T, class Acc, int N>
__device__ void store_run(T* row, const Run<Acc>& run, const Acc (&values)[N], int scale = 1) {
  if (run.vector() && scale == 1) {
    if (run.any()) store(row + run.column, from_acc<T>(values));
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      if (run.has(i)) row[scale * (run.column + i * run.step)] = from_acc<T>(values[i]);
    }
  }
}

template <class T, class Acc, int N>
__device__ void store_parts(T* row, const RowLayout& layout, const Run<Acc>& run, const Acc (&gate)[N],
                            const Acc (&up)[N]) {
  if (run.vector() && layout.step == 2) {
    if (!run.any()) return;
    Acc both[2 * N];
#pragma unroll
    for (int i = 0; i < N; ++i) both[2 * i] = gate[i], both[2 * i + 1] = up[i];
    store(row + 2 * run.column, from_acc<T>(both));
  } else {
    store_run(row, run, gate, layout.step);
    if (layout.gated()) store_run(row + layout.up, run, up, layout.step);
  }
}

// The routing weight of a sorted row: 1 without weights, 0 for a slot that doesn't exist.
template <class Acc>
__device__ Acc row_weight(const void* topk_weights, const int32_t* row_to_slot, int64_t num_slots, int64_t row) {
  if (!topk_weights) return Acc(1);
  const int32_t slot = row_to_slot[row];
  return slot >= 0 && slot < num_slots ? static_cast<const Acc*>(topk_weights)[slot] : Acc(0);
}

}  // namespace moe::cuda
