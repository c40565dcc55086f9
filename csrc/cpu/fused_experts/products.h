// The first product of the experts and its view of the weights, used by forward and by a backward that recomputes.
#pragma once

#include "cpu/grouped_gemm/grouped_gemm.h"
#include "moe/fused_experts.h"

namespace moe::cpu {

inline int64_t preact_size(const FusedExpertsProblem& p) {
  return is_gated(p.activation.kind) ? 2 * p.intermediate_size : p.intermediate_size;
}
inline int64_t num_slots(const FusedExpertsProblem& p) { return p.num_tokens * p.top_k; }
inline int64_t accumulator_size(DType dtype) { return dtype == DType::kFloat64 ? 8 : 4; }

inline const char* at(const void* data, int64_t index, DType dtype) {
  return static_cast<const char*>(data) + index * size_of(dtype);
}
inline char* at(void* data, int64_t index, DType dtype) { return static_cast<char*>(data) + index * size_of(dtype); }

// Where gate and up columns stand in [G]: the same in the weight, the bias and the pre-activation.
struct GateLayout {
  int64_t gate_step;
  int64_t up_offset;

  explicit GateLayout(const FusedExpertsProblem& p)
      : gate_step(is_gated(p.activation.kind) && p.interleaved ? 2 : 1),
        up_offset(!is_gated(p.activation.kind) ? 0
                  : p.interleaved              ? 1
                                               : p.intermediate_size) {}
};

// z = x W_gate_up^T + b into preact, as MXFP8 or in the data's dtype, activation(z) into act; either may be null.
Status first_product(const FusedExpertsProblem& problem, void* preact, bool preact_is_mxfp8, void* act,
                     const Parallel& parallel);

// body(begin, end) for each slab of the hidden dimension.
template <class Body>
Status for_slabs(const FusedExpertsProblem& p, const Body& body) {
  for (int64_t begin = 0; begin < p.hidden_size; begin += p.slab_columns) {
    const int64_t end = begin + p.slab_columns < p.hidden_size ? begin + p.slab_columns : p.hidden_size;
    if (const Status status = body(begin, end); status != Status::kOk) return status;
  }
  return Status::kOk;
}

}  // namespace moe::cpu
