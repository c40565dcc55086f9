#include "cuda/grouped_gemm/plans.h"

#include "cuda/grouped_gemm/grouped_gemm.h"

namespace moe::cuda {
namespace {

// What 16-byte loads along a row of this many elements need beside alignment.
bool whole_loads(DType dtype, int64_t columns) { return columns % (16 / size_of(dtype)) == 0; }

template <class Product>
GemmProblem problem_of(const Product& product, const Device& device, bool aligned, bool deterministic) {
  return {.capability = device.capability,
          .multiprocessors = device.multiprocessors,
          .shared_memory_per_block = device.shared_memory_per_block,
          .dtype = product.dtype,
          .allow_tf32 = product.allow_tf32,
          .aligned = aligned,
          .num_rows = product.num_rows,
          .num_experts = product.num_experts,
          .n = product.n,
          .k = product.k,
          .deterministic = deterministic};
}

}  // namespace

GemmPlan rows_plan(const RowsProduct& product, const Device& device, bool deterministic) {
  const bool aligned = whole_loads(product.dtype, product.k) && whole_loads(product.dtype, product.n) &&
                       is_aligned(product.dtype, product.rows) && is_aligned(product.dtype, product.weight);
  return rows_plan(problem_of(product, device, aligned, deterministic));
}

GemmPlan wgrad_plan(const WgradProduct& product, const Device& device, bool deterministic) {
  const WeightOperand out = {product.out, product.out_expert_stride, product.out_n_stride, product.out_k_stride};
  const DType out_dtype = product.accumulate && product.dtype != DType::kFloat64 ? DType::kFloat32 : product.dtype;
  const bool aligned = whole_loads(product.dtype, product.n) && whole_loads(product.dtype, product.k) &&
                       is_aligned(product.dtype, product.left) && is_aligned(product.dtype, product.right) &&
                       is_aligned(out_dtype, out);
  return wgrad_plan(problem_of(product, device, aligned, deterministic));
}

}  // namespace moe::cuda
