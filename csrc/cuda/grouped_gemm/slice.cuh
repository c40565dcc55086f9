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

template <class Acc, bool kVector_>
struct Run {
  static constexpr bool kVector = kVector_;
  static constexpr int kRun = 16 / sizeof(Acc);
  static constexpr int kLanes = 32 / kRun;
  static constexpr int kStep = kVector ? 1 : kLanes;  // element i is output column + i * kStep

  int row, row_step;  // in the slice
  int local, column;  // of the run's first element, in the slice and in all
  int outputs;

  // kColumns tile columns in all, two of them per output in an order with pairs.
  template <int kColumns, int kThreads>
  static __device__ Run make(const TileColumns& columns, int thread) {
    constexpr int kPlain = kColumns / kRun, kPaired = kPlain / 2;  // threads for one row
    static_assert(kColumns % 64 == 0 && kThreads % kPlain == 0 && kThreads % 32 == 0);
    const bool paired = columns.order != ColumnOrder::kPlain;
    const int place = thread % (paired ? kPaired : kPlain);
    Run run;
    run.row = thread / (paired ? kPaired : kPlain);
    run.row_step = kThreads / (paired ? kPaired : kPlain);
    run.local = kVector ? place * kRun : place / kLanes * 32 + place % kLanes;
    run.column = columns.first + run.local;
    run.outputs = columns.outputs();
    return run;
  }

  // With vectors the run is in or out as a whole.
  __device__ bool has(int i) const { return column + (kVector ? 0 : i * kStep) < outputs; }
  __device__ bool any() const { return column < outputs; }
};

// The sums of a run in a row of the slice. `up` is only written in an order with pairs.
template <int kColumns, class R, class Acc, int N>
__device__ void read_sums(const Acc* row, ColumnOrder order, const R& run, Acc (&gate)[N], Acc (&up)[N]) {
  if constexpr (!R::kVector) {
    const int scale = order == ColumnOrder::kInterleaved ? 2 : 1, offset = scale == 2 ? 1 : kColumns / 2;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const int at = (run.local + i * R::kStep) * scale;
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
  __device__ int parts() const { return up != 0 ? 2 : 1; }
};

// `at` is where the run's first element goes, in a row of outputs.
template <class T, class R, class Acc, int N>
__device__ void store_run(T* at, const R& run, const Acc (&values)[N]) {
  if constexpr (R::kVector) {
    if (run.any()) store(at, from_acc<T>(values));
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      if (run.has(i)) at[i * R::kStep] = from_acc<T>(values[i]);
    }
  }
}

// `at` is where the run's first gate goes, in a row [G] of values or codes.
template <class V, class R, int N>
__device__ void store_parts(V* at, const RowLayout& layout, const R& run, const V (&gate)[N], const V (&up)[N]) {
  if constexpr (!R::kVector) {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      if (!run.has(i)) continue;
      at[i * R::kStep * layout.step] = gate[i];
      if (layout.gated()) at[i * R::kStep * layout.step + layout.up] = up[i];
    }
  } else if (!run.any()) {
    return;
  } else if (layout.step == 2) {
    Vector<V, 2 * N> both;
#pragma unroll
    for (int i = 0; i < N; ++i) both.values[2 * i] = gate[i], both.values[2 * i + 1] = up[i];
    store(at, both);
  } else {
    Vector<V, N> one, other;
#pragma unroll
    for (int i = 0; i < N; ++i) one.values[i] = gate[i], other.values[i] = up[i];
    store(at, one);
    if (layout.gated()) store(at + layout.up, other);
  }
}

// The parts of a run as they came from memory: alternating where a vector of both was loaded, else gate before up.
template <class V, class R, int N>
__device__ void load_parts(const V* at, const RowLayout& layout, const R& run, V (&flat)[N]) {
  if constexpr (!R::kVector) {
#pragma unroll
    for (int i = 0; i < N / 2; ++i) {
      if (!run.has(i)) continue;
      flat[i] = at[i * R::kStep * layout.step];
      if (layout.gated()) flat[N / 2 + i] = at[i * R::kStep * layout.step + layout.up];
    }
  } else if (!run.any()) {
    return;
  } else if (layout.step == 2) {
    const Vector<V, N> both = load<N>(at);
#pragma unroll
    for (int i = 0; i < N; ++i) flat[i] = both.values[i];
  } else {
    const Vector<V, N / 2> one = load<N / 2>(at);
#pragma unroll
    for (int i = 0; i < N / 2; ++i) flat[i] = one.values[i];
    if (!layout.gated()) return;
    const Vector<V, N / 2> other = load<N / 2>(at + layout.up);
#pragma unroll
    for (int i = 0; i < N / 2; ++i) flat[N / 2 + i] = other.values[i];
  }
}

// The routing weight of a sorted row: 1 without weights, 0 for a slot that doesn't exist.
template <class Acc>
__device__ Acc row_weight(const void* topk_weights, const int32_t* row_to_slot, int64_t num_slots, int64_t row) {
  if (!topk_weights) return Acc(1);
  const int32_t slot = row_to_slot[row];
  return slot >= 0 && slot < num_slots ? static_cast<const Acc*>(topk_weights)[slot] : Acc(0);
}

// Calls body(std::true_type()) where runs move as vectors, body(std::false_type()) where they don't.
template <class Body>
__device__ void with_vectors(bool vector, const Body& body) {
  if (vector) {
    body(std::true_type());
  } else {
    body(std::false_type());
  }
}

}  // namespace moe::cuda
