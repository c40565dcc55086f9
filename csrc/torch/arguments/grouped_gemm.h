// The arguments of grouped_gemm and its weight gradients, checked, and their results, allocated.
#pragma once

#include <optional>

#include "moe/grouped_gemm.h"
#include "torch/checks.h"

namespace moe::torch_ops {

// The rows of the sorted order: rows [R, C] themselves, or what `gather` picks from rows [*, C].
struct Segments {
  Tensor offsets;
  std::optional<Tensor> gather;
  int64_t num_rows, num_experts;

  Segments(const Checks& checks, const Tensor& rows, const Tensor& expert_offsets,
           const std::optional<Tensor>& given_gather)
      : offsets(checks.indices(expert_offsets, "expert_offsets", 1, "[E + 1]")) {
    checks.check(offsets.numel() >= 1, "expert_offsets must be [E + 1], got no values");
    num_rows = rows.size(0);
    if (given_gather) {
      gather = checks.indices(*given_gather, "gather", 1, "[R]");
      num_rows = gather->numel();
    }
    checks.check(num_rows < INT32_MAX, "there must be fewer than 2^31 - 1 rows, got ", num_rows);
    num_experts = offsets.numel() - 1;
  }

  const int32_t* gather_data() const { return gather ? Checks::data<int32_t>(*gather) : nullptr; }
};

struct GroupedGemmArguments {
  GroupedGemmParams params = {};
  std::optional<Segments> segments;
  Tensor out;

  GroupedGemmArguments(const Checks& checks, const Tensor& rows, const Tensor& weight, const Tensor& expert_offsets,
                       const std::optional<Tensor>& bias, const std::optional<Tensor>& gather, bool transposed) {
    GroupedGemmParams& p = params;
    checks.has_dims(rows, "rows", 2, "[R, C]");
    checks.has_dims(weight, "weight", 3, transposed ? "[E, C, N]" : "[E, N, C]");
    p.dtype = checks.data_dtype(rows, "rows");
    checks.has_dtype(weight, "weight", rows.scalar_type());
    segments.emplace(checks, rows, expert_offsets, gather);
    p.num_experts = segments->num_experts;
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
    out = empty_like(rows, {segments->num_rows, p.n}, rows.scalar_type());
    p.expert_offsets = Checks::data<int32_t>(segments->offsets);
    p.rows = rows.const_data_ptr();
    p.rows_stride = rows.stride(0);
    p.rows_k_stride = rows.stride(1);
    p.gather = segments->gather_data();
    p.gather_divisor = 1;
    p.weight = {weight.const_data_ptr(), weight.stride(0), weight.stride(transposed ? 2 : 1),
                weight.stride(transposed ? 1 : 2)};
    p.out = out.mutable_data_ptr();
    p.out_stride = p.n;
  }
};

struct WgradArguments {
  GroupedGemmWgradParams params = {};
  std::optional<Segments> segments;

  WgradArguments(const Checks& checks, const Tensor& rows, const Tensor& grad_out, const Tensor& expert_offsets,
                 const std::optional<Tensor>& gather) {
    GroupedGemmWgradParams& p = params;
    checks.has_dims(rows, "rows", 2, "[R, C]");
    segments.emplace(checks, rows, expert_offsets, gather);
    checks.has_dims(grad_out, "grad_out", 2, "[R, N]");
    checks.has_dtype(grad_out, "grad_out", rows.scalar_type());
    checks.has_size(grad_out, "grad_out", 0, segments->num_rows, "R");
    p.dtype = checks.data_dtype(rows, "rows");
    p.num_experts = segments->num_experts;
    p.n = grad_out.size(1);
    p.k = rows.size(1);
    p.expert_offsets = Checks::data<int32_t>(segments->offsets);
    p.grad_out = grad_out.const_data_ptr();
    p.grad_out_stride = grad_out.stride(0);
    p.grad_out_n_stride = grad_out.stride(1);
    p.rows = rows.const_data_ptr();
    p.rows_stride = rows.stride(0);
    p.rows_k_stride = rows.stride(1);
    p.gather = segments->gather_data();
    p.gather_divisor = 1;
  }

  // A fresh gradient in the layout of the weight.
  Tensor new_output(const Tensor& rows, bool transposed, Allocate allocate = &empty_like) {
    const GroupedGemmWgradParams& p = params;
    Tensor out = transposed ? allocate(rows, {p.num_experts, p.k, p.n}, rows.scalar_type())
                            : allocate(rows, {p.num_experts, p.n, p.k}, rows.scalar_type());
    set_output(out, transposed);
    return out;
  }

  void accumulate_into(const Checks& checks, Tensor& accumulator, bool transposed) {
    GroupedGemmWgradParams& p = params;
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
    set_output(accumulator, transposed);
  }

 private:
  void set_output(Tensor& out, bool transposed) {
    params.out = out.mutable_data_ptr();
    params.out_expert_stride = out.stride(0);
    params.out_n_stride = out.stride(transposed ? 2 : 1);
    params.out_k_stride = out.stride(transposed ? 1 : 2);
  }
};

}  // namespace moe::torch_ops
