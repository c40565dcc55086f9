// The layer's products over rows, as forward and backward both need them.
#pragma once

#include "cuda/fused_experts/fused_experts.h"
#include "cuda/grouped_gemm/grouped_gemm.h"

namespace moe::cuda {

inline int64_t num_slots(const FusedExpertsProblem& p) { return p.num_tokens * p.top_k; }
inline int64_t preact_size(const FusedExpertsProblem& p) {
  return is_gated(p.activation.kind) ? 2 * p.intermediate_size : p.intermediate_size;
}
inline PreactFormat kept_format(const FusedExpertsProblem& p) {
  return p.preact_is_mxfp8 ? PreactFormat::kMxfp8 : PreactFormat::kSameAsData;
}
inline int64_t sum_size(DType dtype) { return dtype == DType::kFloat64 ? 8 : 4; }

inline const void* at(const void* data, int64_t elements, DType dtype) {
  return data == nullptr ? nullptr : static_cast<const char*>(data) + elements * size_of(dtype);
}
inline void* at(void* data, int64_t elements, DType dtype) {
  return data == nullptr ? nullptr : static_cast<char*>(data) + elements * size_of(dtype);
}

inline WeightOperand weight_operand(const ExpertMatrix& m) { return {m.data, m.expert_stride, m.n_stride, m.k_stride}; }
inline WeightOperand transposed(const WeightOperand& m) { return {m.data, m.expert_stride, m.k_stride, m.n_stride}; }

// Rows of x or grad_y: one per token.
inline RowOperand token_rows(const FusedExpertsProblem& p, const void* data, int64_t stride, const int32_t* slots) {
  return {data, p.num_tokens, stride, 1, slots, FastDivide(static_cast<uint32_t>(p.top_k > 0 ? p.top_k : 1))};
}
// Rows in sorted order, contiguous.
inline RowOperand sorted_rows(const FusedExpertsProblem& p, const void* data, int64_t width) {
  return {data, p.num_rows, width, 1, nullptr, FastDivide(1)};
}

// One tile list serves every product of a pass, so one plan does.
GemmPlan rows_plan(const FusedExpertsProblem& p, const ExpertsOptions& options, bool backward, const void* grad_y,
                   int64_t grad_y_stride);

RowsProduct rows_product(const FusedExpertsProblem& p, const ExpertsOptions& options, const TileList& tiles,
                         const RowOperand& rows, const WeightOperand& weight, int64_t n, int64_t k);

// z = x W_gate_up^T, and the activation; preact and act may be null.
Outcome up_product(const FusedExpertsProblem& p, const ExpertsOptions& options, const TileList& tiles,
                   const int32_t* row_to_slot, PreactFormat format, void* preact, void* act, const GemmPlan& plan,
                   Stream stream);

}  // namespace moe::cuda
