// Global to shared memory: the copies of 16 bytes that one thread makes of an operand in every k step.
//
// The addresses of a thread's copies, and whether there is anything to read, are known before the loop. A copy in the
// loop is the instruction itself and an addition.
//
// A k that is no multiple of the step is made up for in the first step, which begins at 0, has what is too much and is
// filled with zeros. The loop then has only full steps.
#pragma once

#include "cuda/common/unrolled.cuh"
#include "cuda/grouped_gemm/mma/shared_tiles.cuh"
#include "cuda/ptx/cp_async.cuh"

namespace moe::cuda::mma {

// Eight neighbouring threads copy the 128 bytes of a row.
template <class T, int kRows, int kThreads>
class KMajorCopy {
 public:
  using Tile = KMajorTile<kRows>;

  // row_of(i): which row of `data` tile row i is, or -1 for zeros. stride: elements.
  template <class RowOf>
  __device__ KMajorCopy(const T* data, int64_t stride, int thread, const RowOf& row_of)
      : to_(Tile::offset(thread / kStepChunks, thread % kStepChunks)), k_(thread % kStepChunks * kChunk<T>) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const int64_t row = row_of(thread / kStepChunks + i * kRowsAtOnce);
      from_[i] = data + max(row, int64_t{0}) * stride + k_;
      valid_ |= (row >= 0 ? 1u : 0u) << i;
    }
  }

  // Step 0 has num_k elements of k, 1 .. step.
  __device__ void first(uint32_t stage, int num_k) { copy(stage, k_ < num_k ? valid_ : 0, num_k); }
  __device__ void next(uint32_t stage) { copy(stage, valid_, kStep<T>); }

 private:
  static constexpr int kRowsAtOnce = kThreads / kStepChunks, kCount = kRows / kRowsAtOnce;
  static_assert(kRows % kRowsAtOnce == 0 && kRowsAtOnce % 8 == 0);

  __device__ void copy(uint32_t stage, uint32_t valid, int num_k) {
    unrolled<kCount>([&](auto i) {
      ptx::copy_async_or_zero<i * kRowsAtOnce * kSliceBytes>(stage + to_, from_[i], valid >> i & 1);
      from_[i] += num_k;
    });
  }

  const T* from_[kCount];
  uint32_t to_, valid_ = 0;
  int k_;
};

// Neighbouring threads copy a row of kColumns.
template <class T, int kColumns, int kThreads>
class NMajorCopy {
 public:
  using Tile = NMajorTile<T, kColumns>;

  // column_of(j): which column of `data` tile column j is, or -1 for zeros; the same for a whole chunk. stride:
  // elements from one k to the next.
  template <class ColumnOf>
  __device__ NMajorCopy(const T* data, int64_t stride, int thread, const ColumnOf& column_of)
      : to_(Tile::offset(thread / kChunks, thread % kChunks)), k_(thread / kChunks), stride_(stride) {
    const int column = column_of(thread % kChunks * kChunk<T>);
    valid_ = column >= 0;
#pragma unroll
    for (int i = 0; i < kCount; ++i) from_[i] = data + (k_ + i * kRowsAtOnce) * stride + max(column, 0);
  }

  __device__ void first(uint32_t stage, int num_k) { copy(stage, num_k); }
  __device__ void next(uint32_t stage) { copy(stage, kStep<T>); }

 private:
  static constexpr int kChunks = kColumns / kChunk<T>;
  static constexpr int kRowsAtOnce = kThreads / kChunks, kCount = Tile::kRows / kRowsAtOnce;
  static_assert(kThreads % kChunks == 0 && Tile::kRows % kRowsAtOnce == 0);

  __device__ void copy(uint32_t stage, int num_k) {
    unrolled<kCount>([&](auto i) {
      const bool valid = valid_ && (num_k == kStep<T> || k_ + i * kRowsAtOnce < num_k);
      ptx::copy_async_or_zero<i * kRowsAtOnce * Tile::kRowBytes>(stage + to_, from_[i], valid);
      from_[i] += num_k * stride_;
    });
  }

  const T* from_[kCount];
  uint32_t to_;
  int k_;
  int64_t stride_;
  bool valid_;
};

}  // namespace moe::cuda::mma
