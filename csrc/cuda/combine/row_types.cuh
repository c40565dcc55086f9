// What the kernels of combine share: vectors of a row, and how products of rows are summed.
#pragma once

#include "cuda/common/numeric.cuh"
#include "cuda/common/row_grid.cuh"
#include "cuda/ptx/store_global.cuh"

namespace moe::cuda {

// Elements that move as one access where rows are aligned.
template <class T>
constexpr int kVector = 16 / static_cast<int>(sizeof(T));

// Whether all rows of a matrix begin at a multiple of 16 bytes and are whole vectors. Null pointers are no hindrance.
inline bool is_vectorisable(DType dtype, const void* rows, int64_t row_stride, int64_t width) {
  const int64_t vector = 16 / size_of(dtype);
  return rows == nullptr || (is_multiple(rows, 16) && row_stride % vector == 0 && width % vector == 0);
}

// One access of 16 bytes, or of one element.
template <class T, int kWidth>
__device__ void store_whole(T* target, const Vector<T, kWidth>& vector) {
  if constexpr (kWidth == 1) {
    *target = vector.values[0];
  } else {
    ptx::store_global(target, __builtin_bit_cast(uint4, vector));
  }
}

// Products and sums round one by one, as on the CPU: a fused multiply-add would give other bits, and nothing here waits
// for arithmetic.
__device__ inline float add_product(float sum, float a, float b) { return __fadd_rn(sum, __fmul_rn(a, b)); }
__device__ inline double add_product(double sum, double a, double b) { return __dadd_rn(sum, __dmul_rn(a, b)); }

// A slot's row, or -1.
__device__ inline int64_t existing_row(int32_t row, int64_t num_rows) { return row >= 0 && row < num_rows ? row : -1; }

}  // namespace moe::cuda
