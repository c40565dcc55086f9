#include "cuda/grouped_gemm/wgmma/tensor_map.h"

#include <cuda_runtime.h>

namespace moe::cuda::wgmma {
namespace {

constexpr int64_t kElement = 2, kUnit = 16;  // bytes

// Of the driver's library, which nothing here is linked to.
using Encode = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*, const cuuint64_t*,
                            const cuuint32_t*, const cuuint32_t*, CUtensorMapInterleave, CUtensorMapSwizzle,
                            CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

cudaError_t find_encode(Encode& encode) {
  constexpr const char* kName = "cuTensorMapEncodeTiled";
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
#if CUDART_VERSION >= 12050
  const cudaError_t error = cudaGetDriverEntryPointByVersion(kName, &function, 12000, cudaEnableDefault, &found);
#else
  const cudaError_t error = cudaGetDriverEntryPoint(kName, &function, cudaEnableDefault, &found);
#endif
  encode = reinterpret_cast<Encode>(function);
  if (error != cudaSuccess) return error;
  return found == cudaDriverEntryPointSuccess && encode ? cudaSuccess : cudaErrorSymbolNotFound;
}

bool fits_stride(int64_t elements, int64_t count) {
  return count == 1 || (elements > 0 && elements < (int64_t{1} << 40) / kElement && elements * kElement % kUnit == 0);
}

bool fits_count(int64_t count) { return count >= 1 && count <= int64_t{1} << 31; }

}  // namespace

bool fits_tensor_map(const MatrixStack& stack) {
  return reinterpret_cast<uintptr_t>(stack.data) % kUnit == 0 && fits_count(stack.columns) && fits_count(stack.rows) &&
         fits_count(stack.matrices) && fits_stride(stack.row_stride, stack.rows) &&
         fits_stride(stack.matrix_stride, stack.matrices);
}

Outcome make_tensor_map(DType dtype, const MatrixStack& stack, CUtensorMap& map) {
  Encode encode = nullptr;
  if (const cudaError_t error = find_encode(encode); error != cudaSuccess) {
    static_cast<void>(cudaGetLastError());
    return {Status::kLaunchFailed, static_cast<int32_t>(error), "cuTensorMapEncodeTiled"};
  }
  const auto bytes = [](int64_t stride, int64_t count) -> cuuint64_t { return count == 1 ? kUnit : stride * kElement; };
  const cuuint64_t sizes[] = {static_cast<cuuint64_t>(stack.columns), static_cast<cuuint64_t>(stack.rows),
                              static_cast<cuuint64_t>(stack.matrices)};
  const cuuint64_t strides[] = {bytes(stack.row_stride, stack.rows), bytes(stack.matrix_stride, stack.matrices)};
  const cuuint32_t box[] = {kBox, kBox, 1}, steps[] = {1, 1, 1};
  const CUresult result =
      encode(&map, dtype == DType::kBFloat16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 3,
             const_cast<void*>(stack.data), sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
             CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result == CUDA_SUCCESS) return {};
  return {Status::kLaunchFailed, static_cast<int32_t>(cudaErrorInvalidValue), "cuTensorMapEncodeTiled"};
}

}  // namespace moe::cuda::wgmma
