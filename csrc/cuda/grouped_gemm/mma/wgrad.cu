// Weight gradients of the mma engine: checks, which operand is which, and the file of the dtype.
#include <algorithm>
#include <cstdint>
#include <utility>

#include "cuda/grouped_gemm/mma/wgrad_launch.h"
#include "cuda/grouped_gemm/product.h"

namespace moe::cuda::mma {
namespace {

constexpr Outcome kUnsupported{Status::kUnsupported, 0, "wgrad_kernel"};

bool in_chunks(int64_t elements, int64_t size) { return elements * size % 16 == 0; }
bool in_chunks(const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; }

bool fits(const RowOperand& operand, int64_t size) {
  return operand.k_stride == 1 && in_chunks(operand.data) && in_chunks(operand.stride, size) && operand.stride >= 0 &&
         operand.stride * size <= INT32_MAX;
}

WgradOperand as_loaded(const RowOperand& operand, int32_t columns, int64_t size) {
  const FastDivide divisor = operand.gather != nullptr ? operand.divisor : FastDivide(1);
  const int64_t rows = std::clamp<int64_t>(operand.num_rows, 0, INT32_MAX);
  return {.data = static_cast<const char*>(operand.data),
          .gather = operand.gather,
          .divisor = divisor,
          .limit = static_cast<uint32_t>(std::min(rows * divisor.divisor(), int64_t{1} << 31)),
          .columns = columns,
          .row_bytes = static_cast<int32_t>(operand.stride * size)};
}

}  // namespace

Outcome wgrad(const WgradProduct& product, const GemmPlan& plan, Stream stream) {
  if (product.num_experts == 0 || product.n == 0 || product.k == 0) return {};
  const int64_t size = size_of(product.dtype);
  // out[n, k] contiguous along k, or the transposed product contiguous along n.
  RowOperand left = product.left, right = product.right;
  int32_t m = product.n, n = product.k;
  int64_t out_stride = product.out_n_stride, unit_stride = product.out_k_stride;
  if (unit_stride != 1) {
    std::swap(left, right);
    std::swap(m, n);
    std::swap(out_stride, unit_stride);
  }
  const int64_t out_size = product.accumulate ? 4 : size;
  const bool aligned = unit_stride == 1 && fits(left, size) && fits(right, size) && in_chunks(m, size) &&
                       in_chunks(n, size) && in_chunks(product.out) && in_chunks(out_stride, out_size) &&
                       in_chunks(product.out_expert_stride, out_size);
  constexpr int64_t kMostRows = INT32_MAX - 1024;  // a row some steps past the last one is still an int32
  if (!aligned || product.num_rows > kMostRows) return kUnsupported;

  WgradArguments arguments{};
  arguments.left = as_loaded(left, m, size);
  arguments.right = as_loaded(right, n, size);
  arguments.expert_offsets = product.expert_offsets;
  arguments.num_rows = static_cast<int32_t>(product.num_rows);
  arguments.out = product.out;
  arguments.out_expert_stride = product.out_expert_stride;
  arguments.out_stride = out_stride;
  arguments.accumulate = product.accumulate;
  switch (product.dtype) {
    case DType::kBFloat16:
      return wgrad_bfloat16(arguments, product.num_experts, plan, stream);
    case DType::kFloat16:
      return wgrad_float16(arguments, product.num_experts, plan, stream);
    case DType::kFloat32:
      return product.allow_tf32 ? wgrad_tf32(arguments, product.num_experts, plan, stream) : kUnsupported;
    case DType::kFloat64:
      break;
  }
  return kUnsupported;
}

}  // namespace moe::cuda::mma
