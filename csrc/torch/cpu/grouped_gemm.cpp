// grouped_gemm and its weight gradients for CPU tensors. Contract: moe/grouped_gemm.h and schema.cpp.
#include "cpu/grouped_gemm/grouped_gemm.h"

#include <torch/csrc/stable/library.h>

#include <cstring>
#include <optional>

#include "torch/arguments/grouped_gemm.h"
#include "torch/cpu/huge_pages.h"
#include "torch/cpu/kept_tensor.h"
#include "torch/cpu/threads.h"

namespace moe::torch_ops {

namespace {

// The contents of the index tensors: nothing that a kernel follows may lead out of a tensor.
void check_indices(const Checks& checks, const Segments& segments, int64_t rows_to_pick_from) {
  checks.offsets_fit(segments.offsets, "expert_offsets", segments.num_rows);
  if (!segments.gather) return;
  const int32_t* offsets = Checks::data<int32_t>(segments.offsets);
  const int32_t* picked = segments.gather_data();
  for (int64_t r = offsets[0]; r < offsets[segments.num_experts]; ++r) {
    checks.check(picked[r] >= 0 && picked[r] < rows_to_pick_from, "gather names row ", picked[r], ", but there are ",
                 rows_to_pick_from, " rows");
  }
}

Tensor grouped_gemm(const Tensor& rows, const Tensor& weight, const Tensor& expert_offsets,
                    const std::optional<Tensor>& bias, const std::optional<Tensor>& gather, bool transposed) {
  const Checks checks("grouped_gemm");
  GroupedGemmArguments a(checks, rows, weight, expert_offsets, bias, gather, transposed);
  const GroupedGemmParams& p = a.params;
  check_indices(checks, *a.segments, rows.size(0));
  ask_for_huge_pages(a.out);
  checks.is_ok(cpu::grouped_gemm(p, torch_threads()));

  // Rows of no expert.
  const int64_t row_bytes = p.n * size_of(p.dtype);
  const int64_t first = p.expert_offsets[0], last = p.expert_offsets[p.num_experts];
  std::memset(p.out, 0, first * row_bytes);
  std::memset(static_cast<char*>(p.out) + last * row_bytes, 0, (a.segments->num_rows - last) * row_bytes);
  return a.out;
}

Tensor grouped_gemm_wgrad(const Tensor& rows, const Tensor& grad_out, const Tensor& expert_offsets,
                          const std::optional<Tensor>& gather, bool transposed) {
  const Checks checks("grouped_gemm_wgrad");
  WgradArguments a(checks, rows, grad_out, expert_offsets, gather);
  check_indices(checks, *a.segments, rows.size(0));
  Tensor out = a.new_output(rows, transposed, &empty_kept);
  ask_for_huge_pages(out);
  checks.is_ok(cpu::grouped_gemm_wgrad(a.params, torch_threads()));
  return out;
}

void grouped_gemm_wgrad_into(const Tensor& rows, const Tensor& grad_out, const Tensor& expert_offsets,
                             const std::optional<Tensor>& gather, bool transposed, Tensor accumulator) {
  const Checks checks("grouped_gemm_wgrad_");
  WgradArguments a(checks, rows, grad_out, expert_offsets, gather);
  check_indices(checks, *a.segments, rows.size(0));
  a.accumulate_into(checks, accumulator, transposed);
  checks.is_ok(cpu::grouped_gemm_wgrad(a.params, torch_threads()));
}

}  // namespace

}  // namespace moe::torch_ops

STABLE_TORCH_LIBRARY_IMPL(moe_ext, CPU, m) {
  m.impl("grouped_gemm", TORCH_BOX(&moe::torch_ops::grouped_gemm));
  m.impl("grouped_gemm_wgrad", TORCH_BOX(&moe::torch_ops::grouped_gemm_wgrad));
  m.impl("grouped_gemm_wgrad_", TORCH_BOX(&moe::torch_ops::grouped_gemm_wgrad_into));
}
