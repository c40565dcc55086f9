// Tensor maps: what TMA has to know of an operand. Made on the host at each launch and passed as kernel parameters.
#pragma once

#include <cuda.h>

#include "cuda/grouped_gemm/product.h"

namespace moe::cuda::wgmma {

// Boxes are 64 x 64 elements of 16 bits: 64 rows of 128 bytes, swizzled.
constexpr int kBox = 64;
constexpr int kBoxBytes = kBox * kBox * 2;

// A stack of matrices of 16-bit elements: columns are contiguous, strides count elements.
struct MatrixStack {
  const void* data;
  int64_t columns, rows, matrices;
  int64_t row_stride, matrix_stride;
};

// TMA can read it: addresses and strides are multiples of 16 bytes, sizes and strides within its limits.
bool fits_tensor_map(const MatrixStack& stack);

Outcome make_tensor_map(DType dtype, const MatrixStack& stack, CUtensorMap& map);

}  // namespace moe::cuda::wgmma
