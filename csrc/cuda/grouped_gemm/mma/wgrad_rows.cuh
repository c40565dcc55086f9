// Brings rows of an operand into shared memory, a step of the reduction at a time: tile[row of the step][column].
//
// Each row is cut into chunks of 16 bytes, one per cp.async; neighbouring lanes take neighbouring chunks. Which rows a
// step needs is found out in advance: find() reads one index per lane, copy() hands them round the warp a step later,
// so no copy waits for its index. Rows past the expert's end, rows of gathers that point nowhere, and columns past the
// operand's are zeros in shared memory and are never read.
#pragma once

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
  static constexpr int kChunks = kColumns * sizeof(T) / 16;
  static constexpr int kRowsAtOnce = kThreads / kChunks;
  static constexpr int kCopies = kStepRows / kRowsAtOnce;
  static_assert(kThreads % kChunks == 0 && kStepRows % kRowsAtOnce == 0 && 32 % kStepRows == 0);
  // All rows that a thread copies are swizzled alike, and stand where a fixed lane of the warp found them.
  static_assert(kRowsAtOnce % (sizeof(T) == 2 ? 8 : 4) == 0);

 public:
  static constexpr int kBytes = kStepRows * kColumns * sizeof(T);

  __device__ RowLoader(const WgradOperand& operand, int32_t begin, int32_t end, int first_column, int thread)
      : operand_(operand), found_row_(begin + thread % kStepRows), end_(end) {
    const int chunk = thread % kChunks, column = first_column + chunk * (16 / static_cast<int>(sizeof(T)));
    row_ = thread / kChunks;
    has_column_ = column < operand.columns;
    source_ = ptx::keep(operand.data + static_cast<int64_t>(column) * sizeof(T));
    target_ = row_ * kColumns * sizeof(T) + operand_chunk<T>(row_, chunk) * 16;
  }

  // Where this lane's row of the next step is found: its entry in the gather, or the row itself; negative past the end.
  __device__ int32_t find() {
    int32_t found = -1;
    if (found_row_ < end_) found = operand_.gather != nullptr ? __ldg(operand_.gather + found_row_) : found_row_;
    found_row_ += kStepRows;
    return found;
  }

  // Copies the step whose rows are `found` to shared address `tile`.
  __device__ void copy(uint32_t tile, int32_t found) const {
    constexpr uint32_t kSign = 0x80000000;
    const uint32_t row = operand_.divisor(found & ~kSign) | (found & kSign);  // what is negative stays out of range
#pragma unroll
    for (int i = 0; i < kCopies; ++i) {
      const uint32_t source_row = __shfl_sync(0xffffffff, row, row_ + i * kRowsAtOnce);
      ptx::copy_async_or_zero(tile + target_ + i * kRowsAtOnce * kColumns * sizeof(T),
                              source_ + static_cast<int64_t>(static_cast<int32_t>(source_row)) * operand_.row_bytes,
                              source_row < operand_.num_rows && has_column_);
    }
  }

 private:
  const WgradOperand& operand_;
  const char* source_;  // this thread's column in row 0
  uint32_t target_;
  int row_;
  int32_t found_row_, end_;
  bool has_column_;
};

}  // namespace moe::cuda::mma
