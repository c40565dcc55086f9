// How the operands of one k step stand in shared memory. A step is 128 bytes of k, four instructions of 32 bytes each,
// in chunks of 16 bytes: 64 elements of 16 bits, or 32 of tf32.
//
// No access has a bank conflict, and all addresses of a thread are one register plus constants: nothing is computed
// in the main loop but the stage.
#pragma once

#include <cstdint>

#include "cuda/policy/gemm_plan.h"

namespace moe::cuda::mma {

constexpr int kChunkBytes = 16;
constexpr int kStepChunks = kMmaStepBytes / kChunkBytes;
constexpr int kSlices = 4;  // instructions along k in a step
constexpr int kSliceBytes = kMmaStepBytes / kSlices;
template <class T>
constexpr int kStep = kMmaStepBytes / sizeof(T);
template <class T>
constexpr int kChunk = kChunkBytes / sizeof(T);

// Rows whose k is contiguous. Each slice is a slab of [rows][2 chunks]. The two chunks of a row change places with bit
// 2 of the row, so that 8 rows of a matrix cover all banks; slabs begin 32 bytes further each time, so that the 8
// chunks of a row, which neighbouring threads write, do too.
template <int kRows>
struct KMajorTile {
  static_assert(kRows % 8 == 0);
  static constexpr int kSlabBytes = kRows * kSliceBytes + 32;
  static constexpr int kBytes = kSlices * kSlabBytes;

  static __device__ uint32_t offset(int row, int chunk) {
    return chunk / 2 * kSlabBytes + row * kSliceBytes + ((chunk ^ row >> 2) & 1) * kChunkBytes;
  }
};

// Columns are contiguous: row i holds k = i. Rows are padded so that 8 rows at one chunk (or, with 32-bit elements,
// 4 rows at 8 columns) cover all banks.
template <class T, int kColumns>
struct NMajorTile {
  static constexpr int kRows = kStep<T>;
  static constexpr int kRowBytes = kColumns * sizeof(T) + (sizeof(T) == 2 ? 16 : 32);
  static constexpr int kBytes = kRows * kRowBytes;

  static __device__ uint32_t offset(int row, int chunk) { return row * kRowBytes + chunk * kChunkBytes; }
};

}  // namespace moe::cuda::mma
