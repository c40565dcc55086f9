// How the SIMT engine's threads walk over each operand: with vectors where sizes, strides and addresses allow them, and
// along the contiguous dimension in any case.
#pragma once

#include <cstdint>
#include <initializer_list>

#include "cuda/grouped_gemm/epilogue_host.h"
#include "cuda/grouped_gemm/product.h"
#include "cuda/grouped_gemm/simt/operand.cuh"

namespace moe::cuda::simt {

// `sizes` and `strides` besides those of the contiguous dimension: what must be multiples of a vector.
inline bool fits_vectors(DType dtype, const void* data, std::initializer_list<int64_t> numbers) {
  const int64_t vector = run_of(dtype);
  for (const int64_t number : numbers) {
    if (number % vector != 0) return false;
  }
  return is_multiple(data, vector * size_of(dtype));
}

inline Access rows_access(const RowsProduct& product) {
  const RowOperand& rows = product.rows;
  if (rows.k_stride == 1) {
    return fits_vectors(product.dtype, rows.data, {rows.stride, product.k}) ? Access::kVectorK : Access::kScalarK;
  }
  return rows.stride == 1 && !rows.gather ? Access::kScalarOuter : Access::kScalarK;
}

inline Access weight_access(const RowsProduct& product, ColumnOrder order) {
  const WeightOperand& weight = product.weight;
  if (weight.k_stride == 1) {
    const bool vectors = fits_vectors(product.dtype, weight.data, {weight.expert_stride, weight.n_stride, product.k});
    return vectors ? Access::kVectorK : Access::kScalarK;
  }
  if (weight.n_stride != 1) return Access::kScalarK;
  const int64_t columns = order == ColumnOrder::kSplit ? product.n / 2 : product.n;  // up begins there, too
  const bool vectors = fits_vectors(product.dtype, weight.data, {weight.expert_stride, weight.k_stride, columns});
  return vectors ? Access::kVectorOuter : Access::kScalarOuter;
}

// Of a weight gradient: `columns` are the outer dimension, rows the inner one.
inline Access column_access(DType dtype, const RowOperand& operand, int64_t columns) {
  if (operand.k_stride == 1) {
    return fits_vectors(dtype, operand.data, {operand.stride, columns}) ? Access::kVectorOuter : Access::kScalarOuter;
  }
  return operand.stride == 1 && !operand.gather ? Access::kScalarK : Access::kScalarOuter;
}

}  // namespace moe::cuda::simt
