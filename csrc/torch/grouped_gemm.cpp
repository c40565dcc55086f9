// grouped_gemm and its weight gradients for CPU tensors. Contract: moe/grouped_gemm.h and schema.cpp.
#include "cpu/grouped_gemm/grouped_gemm.h"

#include <torch/csrc/stable/library.h>

#include <cstring>
#include <optional>

#include "torch/allocate.h"
#include "torch/checks.h"

namespace moe::torch_ops {

namespace {

// The rows of the sorted order: rows [R, C] themselves, or what `gather` picks from rows [*, C].
struct Segments {
  Tensor offsets;
  std::optional<Tensor> gather;
  int64_t num_rows, num_experts;

  Segments(const Checks& checks, const Tensor& rows, const Tensor& expert_offsets,
           const std::optional<Tensor>& given_gather)
      : offsets(checks.indices(expert_offsets, "expert_offsets", 1, "[E + 1]")) {
    num_rows = rows.size(0);
    if (given_gather) {
      gather = checks.indices(*given_gather, "gather", 1, "[R]");
      num_rows = gather->numel();
    }
    checks.offsets_fit(offsets, "expert_offsets", num_rows);
    num_experts = offsets.numel() - 1;
    if (gather) {
      const int32_t* picked = Checks::data<int32_t>(*gather);
      for (int64_t r = offset(0); r < offset(num_experts); ++r) {
        checks.check(picked[r] >= 0 && picked[r] < rows.size(0), "gather names row ", picked[r], ", but there are ",
                     rows.size(0), " rows");
      }
    }
  }

  int64_t offset(int64_t e) const { return Checks::data<int32_t>(offsets)[e]; }
  const int32_t* gather_data() const { return gather ? Checks::data<int32_t>(*gather) : nullptr; }
};

Tensor grouped_gemm(const Tensor& rows, const Tensor& weight, const Tensor& expert_offsets,
                    const std::optional<Tensor>& bias, const std::optional<Tensor>& gather, bool transposed) {
  const Checks checks("grouped_gemm");
  checks.has_dims(rows, "rows", 2, "[R, C]");
  checks.has_dims(weight, "weight", 3, transposed ? "[E, C, N]" : "[E, N, C]");
  GroupedGemmParams p = {};
  p.dtype = checks.data_dtype(rows, "rows");
  checks.has_dtype(weight, "weight", rows.scalar_type());
  const Segments segments(checks, rows, expert_offsets, gather);
  p.num_experts = segments.num_experts;
  p.n = weight.size(transposed ? 2 : 1);
  p.k = rows.size(1);
  checks.has_size(weight, "weight", 0, p.num_experts, "E");
  checks.has_size(weight, "weight", transposed ? 1 : 2, p.k, "C");
  if (bias) {
    checks.has_dims(*bias, "bias", 2, "[E, N]");
    checks.has_dtype(*bias, "bias", rows.scalar_type());
    checks.has_size(*bias, "bias", 0, p.num_experts, "E");
    checks.has_size(*bias, "bias", 1, p.n, "N");
    p.bias = bias->const_data_ptr();
    p.bias_expert_stride = bias->stride(0);
    p.bias_stride = bias->stride(1);
  }
  Tensor out = allocate(rows, {segments.num_rows, p.n}, rows.scalar_type());
  p.expert_offsets = Checks::data<int32_t>(segments.offsets);
  p.rows = rows.const_data_ptr();
  p.rows_stride = rows.stride(0);
  p.rows_k_stride = rows.stride(1);
  p.gather = segments.gather_data();
  p.gather_divisor = 1;
  p.weight = {weight.const_data_ptr(), weight.stride(0), weight.stride(transposed ? 2 : 1),
              weight.stride(transposed ? 1 : 2)};
  p.out = out.mutable_data_ptr();
  p.out_stride = p.n;
  checks.is_ok(cpu::grouped_gemm(p, torch_threads()));

  // Rows of no expert.
  const int64_t row_bytes = p.n * size_of(p.dtype);
  const int64_t first = segments.offset(0), last = segments.offset(p.num_experts);
  std::memset(p.out, 0, first * row_bytes);
  std::memset(static_cast<char*>(p.out) + last * row_bytes, 0, (segments.num_rows - last) * row_bytes);
  return out;
}

// Everything of a weight gradient but where it goes.
GroupedGemmWgradParams wgrad_params(const Checks& checks, const Tensor& rows, const Tensor& grad_out,
                                    const Segments& segments) {
  checks.has_dims(grad_out, "grad_out", 2, "[R, N]");
  checks.has_dtype(grad_out, "grad_out", rows.scalar_type());
  checks.has_size(grad_out, "grad_out", 0, segments.num_rows, "R");
  GroupedGemmWgradParams p = {};
  p.dtype = checks.data_dtype(rows, "rows");
  p.num_experts = segments.num_experts;
  p.n = grad_out.size(1);
  p.k = rows.size(1);
  p.expert_offsets = Checks::data<int32_t>(segments.offsets);
  p.grad_out = grad_out.const_data_ptr();
  p.grad_out_stride = grad_out.stride(0);
  p.grad_out_n_stride = grad_out.stride(1);
  p.rows = rows.const_data_ptr();
  p.rows_stride = rows.stride(0);
  p.rows_k_stride = rows.stride(1);
  p.gather = segments.gather_data();
  p.gather_divisor = 1;
  return p;
}

void set_output(GroupedGemmWgradParams& p, Tensor& out, bool transposed) {
  p.out = out.mutable_data_ptr();
  p.out_expert_stride = out.stride(0);
  p.out_n_stride = out.stride(transposed ? 2 : 1);
  p.out_k_stride = out.stride(transposed ? 1 : 2);
}

Tensor grouped_gemm_wgrad(const Tensor& rows, const Tensor& grad_out, const Tensor& expert_offsets,
                          const std::optional<Tensor>& gather, bool transposed) {
  const Checks checks("grouped_gemm_wgrad");
  checks.has_dims(rows, "rows", 2, "[R, C]");
  const Segments segments(checks, rows, expert_offsets, gather);
  GroupedGemmWgradParams p = wgrad_params(checks, rows, grad_out, segments);
  Tensor out = transposed ? allocate(rows, {p.num_experts, p.k, p.n}, rows.scalar_type())
                          : allocate(rows, {p.num_experts, p.n, p.k}, rows.scalar_type());
  set_output(p, out, transposed);
  checks.is_ok(cpu::grouped_gemm_wgrad(p, torch_threads()));
  return out;
}

void grouped_gemm_wgrad_into(const Tensor& rows, const Tensor& grad_out, const Tensor& expert_offsets,
                             const std::optional<Tensor>& gather, bool transposed, Tensor accumulator) {
  const Checks checks("grouped_gemm_wgrad_");
  checks.has_dims(rows, "rows", 2, "[R, C]");
  const Segments segments(checks, rows, expert_offsets, gather);
  GroupedGemmWgradParams p = wgrad_params(checks, rows, grad_out, segments);
  p.accumulate = true;
  checks.has_dims(accumulator, "accumulator", 3, transposed ? "[E, C, N]" : "[E, N, C]");
  checks.has_dtype(accumulator, "accumulator", weights_dtype(p.dtype));
  checks.has_size(accumulator, "accumulator", 0, p.num_experts, "E");
  checks.has_size(accumulator, "accumulator", transposed ? 2 : 1, p.n, "N");
  checks.has_size(accumulator, "accumulator", transposed ? 1 : 2, p.k, "C");
  // Elements that share memory would be added to by several threads at once.
  for (int64_t d = 0; d < 3; ++d) {
    checks.check(accumulator.size(d) <= 1 || accumulator.stride(d) != 0,
                 "accumulator must not be expanded, but its stride is 0 in dimension ", d);
  }
  set_output(p, accumulator, transposed);
  checks.is_ok(cpu::grouped_gemm_wgrad(p, torch_threads()));
}

}  // namespace

}  // namespace moe::torch_ops

STABLE_TORCH_LIBRARY_IMPL(moe_ext, CPU, m) {
  m.impl("grouped_gemm", TORCH_BOX(&moe::torch_ops::grouped_gemm));
  m.impl("grouped_gemm_wgrad", TORCH_BOX(&moe::torch_ops::grouped_gemm_wgrad));
  m.impl("grouped_gemm_wgrad_", TORCH_BOX(&moe::torch_ops::grouped_gemm_wgrad_into));
}
