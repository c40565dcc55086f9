// grouped_gemm and its weight gradients for CUDA tensors. Contract: moe/grouped_gemm.h and schema.cpp.
#include "cuda/grouped_gemm/grouped_gemm.h"

#include <optional>

#include "cuda/grouped_gemm/plans.h"
#include "cuda/permute/permute.h"
#include "cuda/workspace.h"
#include "torch/arguments/grouped_gemm.h"
#include "torch/cuda/launching.h"

namespace moe::torch_ops {

namespace {

// Kernels count the columns of a product in 32 bits.
int32_t column_count(const Checks& checks, int64_t columns) {
  checks.check(columns < INT32_MAX, "matrices must have fewer than 2^31 - 1 rows and columns, got ", columns);
  return static_cast<int32_t>(columns);
}

Tensor grouped_gemm(const Tensor& rows, const Tensor& weight, const Tensor& expert_offsets,
                    const std::optional<Tensor>& bias, const std::optional<Tensor>& gather, bool transposed) {
  const Checks checks("grouped_gemm", kKernelPlace);
  const GroupedGemmArguments a(checks, rows, weight, expert_offsets, bias, gather, transposed);
  const GroupedGemmParams& p = a.params;
  Launching launching(checks, rows);
  cuda::RowsProduct product = {};
  product.dtype = p.dtype;
  product.allow_tf32 = Launching::allow_tf32();
  product.num_rows = a.segments->num_rows;
  product.num_experts = p.num_experts;
  product.n = column_count(checks, p.n);
  product.k = column_count(checks, p.k);
  product.rows = {p.rows, rows.size(0), p.rows_stride, p.rows_k_stride, p.gather, cuda::FastDivide(1)};
  product.weight = {p.weight.data, p.weight.expert_stride, p.weight.n_stride, p.weight.k_stride};
  const cuda::GemmPlan plan = cuda::rows_plan(product, launching.device(), false);

  const int64_t max_tiles = cuda::max_tiles(product.num_rows, p.num_experts, plan.block_m);
  const auto lay_out = [&](cuda::Workspace memory) {
    product.tiles.tiles = memory.take<cuda::Tile>(max_tiles);
    product.tiles.count = memory.take<int32_t>(1);
    return memory.used();
  };
  lay_out(cuda::Workspace(launching.workspace(lay_out(cuda::Workspace(nullptr)))));
  const auto describe = [&](const cuda::Outcome& outcome) {
    launching.is_ok(outcome, "rows ", shape_text(rows), ", weight ", shape_text(weight), ", ", cuda::to_string(plan));
  };
  describe(cuda::restore_routing({.num_tokens = product.num_rows,
                                  .top_k = 1,
                                  .num_experts = p.num_experts,
                                  .expert_offsets = p.expert_offsets,
                                  .slot_to_row = nullptr,
                                  .row_to_slot = nullptr,
                                  .num_rows = product.num_rows,
                                  .tiles = {plan.block_m, product.tiles.tiles, product.tiles.count}},
                                 launching.stream()));
  cuda::StoreEpilogue epilogue = {};
  epilogue.bias = p.bias;
  epilogue.bias_expert_stride = p.bias_expert_stride;
  epilogue.bias_stride = p.bias_stride;
  epilogue.out = p.out;
  epilogue.out_stride = p.out_stride;
  describe(cuda::store(product, epilogue, plan, launching.stream()));
  return a.out;
}

void run_wgrad(const Checks& checks, const Tensor& rows, const Tensor& grad_out, const WgradArguments& a) {
  const GroupedGemmWgradParams& p = a.params;
  const Launching launching(checks, rows);
  cuda::WgradProduct product = {};
  product.dtype = p.dtype;
  product.allow_tf32 = Launching::allow_tf32();
  product.num_rows = a.segments->num_rows;
  product.num_experts = p.num_experts;
  product.n = column_count(checks, p.n);
  product.k = column_count(checks, p.k);
  product.expert_offsets = p.expert_offsets;
  product.left = {p.grad_out,          grad_out.size(0),  p.grad_out_stride,
                  p.grad_out_n_stride, p.grad_out_gather, cuda::FastDivide(1)};
  product.right = {p.rows, rows.size(0), p.rows_stride, p.rows_k_stride, p.gather, cuda::FastDivide(1)};
  product.out = p.out;
  product.out_expert_stride = p.out_expert_stride;
  product.out_n_stride = p.out_n_stride;
  product.out_k_stride = p.out_k_stride;
  product.accumulate = p.accumulate;
  const cuda::GemmPlan plan = cuda::wgrad_plan(product, launching.device(), false);
  launching.is_ok(cuda::wgrad(product, plan, launching.stream()), "rows ", shape_text(rows), ", grad_out ",
                  shape_text(grad_out), ", ", cuda::to_string(plan));
}

Tensor grouped_gemm_wgrad(const Tensor& rows, const Tensor& grad_out, const Tensor& expert_offsets,
                          const std::optional<Tensor>& gather, bool transposed) {
  const Checks checks("grouped_gemm_wgrad", kKernelPlace);
  WgradArguments a(checks, rows, grad_out, expert_offsets, gather);
  Tensor out = a.new_output(rows, transposed);
  run_wgrad(checks, rows, grad_out, a);
  return out;
}

void grouped_gemm_wgrad_into(const Tensor& rows, const Tensor& grad_out, const Tensor& expert_offsets,
                             const std::optional<Tensor>& gather, bool transposed, Tensor accumulator) {
  const Checks checks("grouped_gemm_wgrad_", kKernelPlace);
  WgradArguments a(checks, rows, grad_out, expert_offsets, gather);
  a.accumulate_into(checks, accumulator, transposed);
  run_wgrad(checks, rows, grad_out, a);
}

}  // namespace

}  // namespace moe::torch_ops

MOE_EXT_LIBRARY_IMPL(MOE_EXT_OPS, MOE_EXT_KERNEL_KEY, m) {
  m.impl("grouped_gemm", TORCH_BOX(&moe::torch_ops::grouped_gemm));
  m.impl("grouped_gemm_wgrad", TORCH_BOX(&moe::torch_ops::grouped_gemm_wgrad));
  m.impl("grouped_gemm_wgrad_", TORCH_BOX(&moe::torch_ops::grouped_gemm_wgrad_into));
}
