// From a product and a plan to the kernel that fits them.
#pragma once

#include "cuda/common/launch_kernel.cuh"
#include "cuda/grouped_gemm/epilogue_host.h"
#include "cuda/grouped_gemm/grouped_gemm.h"
#include "cuda/grouped_gemm/mma/rows_kernel.cuh"

namespace moe::cuda::mma {

template <class T, class Shape, bool kKMajor, class Epilogue>
Outcome launch_shape(const char* name, const RowsProduct& product, const Epilogue& epilogue, Stream stream) {
  const ColumnOrder order = column_order(epilogue);
  const int64_t width = order == ColumnOrder::kPlain ? Shape::kBlockN : Shape::kBlockN / 2;
  const int64_t outputs = TileColumns{order, product.n, 0}.outputs();
  const int64_t column_blocks = (outputs + width - 1) / width;
  const int64_t blocks = column_blocks * max_tiles(product.num_rows, product.num_experts, Shape::kBlockM);
  if (blocks == 0) return {};
  if (blocks > INT32_MAX) return {Status::kUnsupported};
  return launch(name, rows_product<T, Shape, kKMajor, Epilogue>, dim3(static_cast<unsigned>(blocks)),
                dim3(Shape::kThreads), Shape::kSharedBytes, stream, product, prepare(epilogue, product), order,
                FastDivide(static_cast<uint32_t>(column_blocks)));
}

// Shapes of warps were chosen for the fewest fragments a product: 64x64 where registers allow it.
template <class T, bool kKMajor, class Epilogue>
Outcome launch_plan(const char* name, const RowsProduct& product, const Epilogue& epilogue, const GemmPlan& plan,
                    Stream stream) {
  const auto is = [&](int32_t block_m, int32_t block_n, int32_t stages) {
    return plan == GemmPlan{Family::kMma, block_m, block_n, static_cast<int32_t>(kMmaStepBytes / sizeof(T)), stages};
  };
  if (is(16, 128, 4)) return launch_shape<T, Shape<16, 128, 1, 4, 4, 2>, kKMajor>(name, product, epilogue, stream);
  if (is(64, 128, 3)) return launch_shape<T, Shape<64, 128, 2, 2, 3, 2>, kKMajor>(name, product, epilogue, stream);
  if (is(128, 128, 2)) return launch_shape<T, Shape<128, 128, 2, 2, 2, 2>, kKMajor>(name, product, epilogue, stream);
  if constexpr (sizeof(T) == 2) {
    if (is(128, 256, 2)) return launch_shape<T, Shape<128, 256, 2, 4, 2, 1>, kKMajor>(name, product, epilogue, stream);
    if (is(128, 256, 3)) return launch_shape<T, Shape<128, 256, 2, 4, 3, 1>, kKMajor>(name, product, epilogue, stream);
  }
  return {Status::kUnsupported};
}

template <class Epilogue>
Outcome launch_rows(const char* name, const RowsProduct& product, const Epilogue& epilogue, const GemmPlan& plan,
                    Stream stream) {
  const int64_t chunk = 16 / size_of(product.dtype);
  const WeightOperand& weight = product.weight;
  const bool k_major = weight.k_stride == 1;
  const int64_t outputs = TileColumns{column_order(epilogue), product.n, 0}.outputs();
  const bool fits = product.k % chunk == 0 && (k_major || (product.n % chunk == 0 && outputs % chunk == 0)) &&
                    is_aligned(product.dtype, product.rows) && product.rows.k_stride == 1 &&
                    is_aligned(product.dtype, weight) && (k_major || weight.n_stride == 1);
  if (!fits) return {Status::kUnsupported};
  const auto with_layout = [&]<class T>(const T*) {
    return k_major ? launch_plan<T, true>(name, product, epilogue, plan, stream)
                   : launch_plan<T, false>(name, product, epilogue, plan, stream);
  };
  switch (product.dtype) {
    case DType::kBFloat16:
      return with_layout(static_cast<const __nv_bfloat16*>(nullptr));
    case DType::kFloat16:
      return with_layout(static_cast<const __half*>(nullptr));
    case DType::kFloat32:
      if (product.allow_tf32) return with_layout(static_cast<const float*>(nullptr));
      [[fallthrough]];
    case DType::kFloat64:
      break;
  }
  return {Status::kUnsupported};
}

}  // namespace moe::cuda::mma
