// Brings rows of an operand into shared memory, a step of the reduction at a time: tile[row of the step][column].
//
// Each row is cut into chunks of 16 bytes, one per cp.async; eight neighbouring lanes copy 128 bytes of a row, then the
// next 128, so that a row costs one address and the copies' distances stand in the instructions. Which rows a step
// needs is found out in advance: find() reads the thread's indices, copy() uses them a step later, so no copy waits for
// its index. Rows past the expert's end, rows of gathers that point nowhere, and columns past the operand's are zeros
// in shared memory and are never read.
#pragma once

#include "cuda/common/unrolled.cuh"
#include "cuda/grouped_gemm/mma/wgrad_launch.h"
#include "cuda/ptx/cp_async.cuh"
#include "cuda/ptx/keep.cuh"

namespace moe::cuda::mma {

// Where a chunk of a row stands. Matrices that ldmatrix transposes have their 8 rows of 16 bytes in 8 rows of the tile;
// 32-bit elements are read as 2 chunks in each of 4 rows. Either way 128 bytes in different banks.
template <class T>
__device__ constexpr int operand_chunk(int row, int chunk) {
  return sizeof(T) == 2 ? chunk ^ (row & 7) : chunk ^ ((row & 3) << 1);
}

template <class T, int kColumns, int kStepRows, int kThreads>
class RowLoader {
  static constexpr int kRowBytes = kColumns * sizeof(T), kPieceBytes = 128, kPieces = kRowBytes / kPieceBytes;
  static constexpr int kPieceColumns = kPieceBytes / sizeof(T);
  static constexpr int kRowsAtOnce = kThreads / 8, kCount = kStepRows / kRowsAtOnce;
  static_assert(kRowBytes % kPieceBytes == 0 && kStepRows % kRowsAtOnce == 0);
  static_assert(kRowsAtOnce % 8 == 0, "all rows that a thread copies are swizzled alike");

 public:
  static constexpr int kBytes = kStepRows * kRowBytes;

  // Where the rows of a step that this thread copies are found: entries of the gather, or the rows themselves.
  struct Found {
    uint32_t rows[kCount];
  };

  // tile: shared address of the first stage's.
  __device__ RowLoader(const WgradOperand& operand, int32_t begin, int32_t end, int first_column, uint32_t tile,
                       int thread)
      : operand_(operand), row_(begin + thread / 8), end_(end) {
    const int chunk = thread % 8, column = first_column + chunk * (16 / static_cast<int>(sizeof(T)));
    const uint32_t limit = operand.gather != nullptr ? operand.limit : min(operand.limit, static_cast<uint32_t>(end));
    unrolled<kPieces>(
        [&](auto piece) { limits_[piece] = column + piece * kPieceColumns < operand.columns ? limit : 0; });
    source_ = ptx::keep(operand.data + static_cast<int64_t>(column) * sizeof(T));
    target_ = tile + thread / 8 * kRowBytes + operand_chunk<T>(thread / 8, chunk) * 16;
  }

  // Of the next step.
  __device__ void find(Found& found) {
    constexpr uint32_t kNowhere = 0xffffffff;
    unrolled<kCount>([&](auto i) { found.rows[i] = row_ + i * kRowsAtOnce; });
    if (operand_.gather != nullptr) {
      const int32_t* const indices = operand_.gather + row_;
      unrolled<kCount>([&](auto i) {
        const bool valid = static_cast<int32_t>(found.rows[i]) < end_;
        found.rows[i] = valid ? static_cast<uint32_t>(__ldg(indices + i * kRowsAtOnce)) : kNowhere;
      });
    }
    row_ += kStepRows;
  }

  // Copies a step to the stage that begins `stage` bytes after the first.
  __device__ void copy(uint32_t stage, const Found& found) const {
    const uint32_t to = target_ + stage;
    unrolled<kCount>([&](auto i) {
      const uint32_t row = operand_.divisor(found.rows[i]);  // of no meaning beyond the limit
      const char* const from = source_ + static_cast<uint64_t>(row) * static_cast<uint32_t>(operand_.row_bytes);
      unrolled<kPieces>([&](auto piece) {
        ptx::copy_async_part<i * kRowsAtOnce * kRowBytes + piece * kPieceBytes, piece * kPieceBytes>(
            to, from, found.rows[i] < limits_[piece] ? 16 : 0);
      });
    });
  }

 private:
  const WgradOperand& operand_;
  const char* source_;  // this thread's first column in row 0
  uint32_t target_;
  uint32_t limits_[kPieces];  // below which a row's piece is there: 0 past the operand's columns
  int32_t row_, end_;
};

}  // namespace moe::cuda::mma
