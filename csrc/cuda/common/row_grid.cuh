// Threads laid over the rows of a matrix: a row's threads stand side by side, as many as its vectors keep busy, and a
// block takes as many rows as it has threads for.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

namespace moe::cuda {

constexpr int kRowGridThreads = 256;

struct RowGrid {
  int row_threads_log2;
  dim3 blocks;  // rows, columns
};

// Threads take `vectors_per_thread` vectors of a row at once.
inline RowGrid row_grid(int64_t num_rows, int64_t row_vectors, int vectors_per_thread) {
  int log2 = 0;
  while ((1 << log2) < kRowGridThreads && (int64_t{vectors_per_thread} << log2) < row_vectors) ++log2;
  const int64_t rows_per_block = kRowGridThreads >> log2;
  const int64_t vectors_per_block = int64_t{vectors_per_thread} << log2;
  const int64_t columns = std::clamp<int64_t>((row_vectors + vectors_per_block - 1) / vectors_per_block, 1, 65535);
  const int64_t rows = (num_rows + rows_per_block - 1) / rows_per_block;
  return {log2, dim3(static_cast<unsigned>(rows), static_cast<unsigned>(columns))};
}

// Where a thread stands: it takes vectors first, first + next, ... of its row, in groups that begin `stride` apart.
struct RowPlace {
  int64_t row;
  int64_t first, next, stride;

  __device__ RowPlace(int row_threads_log2, int vectors_per_thread)
      : row(static_cast<int64_t>(blockIdx.x) * (kRowGridThreads >> row_threads_log2) +
            (threadIdx.x >> row_threads_log2)),
        next(1 << row_threads_log2) {
    const int64_t of_block = next * vectors_per_thread;
    first = blockIdx.y * of_block + (threadIdx.x & (next - 1));
    stride = gridDim.y * of_block;
  }
};

inline bool is_multiple(const void* pointer, int64_t bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % static_cast<uintptr_t>(bytes) == 0;
}

}  // namespace moe::cuda
