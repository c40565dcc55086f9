// The products that every engine computes, and what happens to their results. Plain structs: kernel parameters as they
// are. Engines (simt, mma, wgmma) differ in how they multiply, never in what.
#pragma once

#include "cuda/common/fast_divide.h"
#include "cuda/launch.h"
#include "cuda/permute/tiles.h"
#include "cuda/policy/gemm_plan.h"
#include "moe/activation.h"
#include "moe/types.h"

namespace moe::cuda {

// Row r of an operand is data[row(r) * stride]; row(r) = r, or gather[r] / divisor. A row outside 0 .. num_rows - 1
// counts as zeros: it is never read.
struct RowOperand {
  const void* data;
  int64_t num_rows;
  int64_t stride, k_stride;  // elements
  const int32_t* gather;     // [R] or null
  FastDivide divisor;
};

struct WeightOperand {
  const void* data;  // [n, k] of each expert
  int64_t expert_stride, n_stride, k_stride;
};

// product[r, n] = sum over k of rows[r, k] * weight[expert of r][n, k].
struct RowsProduct {
  DType dtype;
  bool allow_tf32;
  int64_t num_rows, num_experts;
  int32_t n, k;
  TileList tiles;  // with tiles.decode, rows.gather is null and row(r) = slot of r / rows.divisor
  RowOperand rows;
  WeightOperand weight;
};

// What an epilogue sees of a finished tile are sums in float32 (float64 for float64 data). In a tile of no expert
// (expert = -1) StoreEpilogue and ActivateEpilogue write zeros, ActivateBackwardEpilogue nothing. A slot outside
// 0 .. num_slots - 1 has weight 0.

// out[r, n] = product + bias[e, n].
struct StoreEpilogue {
  const void* bias;  // or null
  int64_t bias_expert_stride, bias_stride;
  void* out;
  int64_t out_stride;   // unit stride over n
  bool vector = false;  // see prepare() in epilogue_host.h
};

enum class PreactFormat : int32_t { kSameAsData, kMxfp8 };

// z = weight_of_row * product + bias; preact = z; act = activation(z). n = G columns; act has n / 2 when gated.
struct ActivateEpilogue {
  ActivationRule rule;
  bool interleaved;
  const void* bias;  // [E, G] or null
  int64_t bias_expert_stride, bias_stride;
  const void* topk_weights;    // float (double): the product is multiplied by topk_weights[row_to_slot[r]]; null: not
  const int32_t* row_to_slot;  // [R], with topk_weights
  int64_t num_slots;
  PreactFormat preact_format;
  void* preact;  // [R, G] contiguous, columns in the weight's order, or null. kMxfp8: see moe/fused_experts.h
  void* act;     // [R, I] contiguous, or null
  bool vector = false;
};

// product = d(loss)/d(act), not yet multiplied by the routing weight: n = I columns.
//   d_act = weight * product;  grad_preact = d_act * activation'(z);  act_scaled = weight * activation(z);
//   partials[r, c] = sum over columns kPartialColumns * c ... of product * activation(z)
// where weight = topk_weights[row_to_slot[r]], or 1 where topk_weights is null.
constexpr int32_t kPartialColumns = 64;

struct ActivateBackwardEpilogue {
  ActivationRule rule;
  bool interleaved;
  PreactFormat preact_format;
  const void* preact;  // [R, G]
  const void* topk_weights;
  const int32_t* row_to_slot;
  int64_t num_slots;
  void* grad_preact;  // [R, G] contiguous, in the data's dtype; may be preact itself (each value is read first)
  void* act_scaled;   // [R, I] contiguous, or null
  void* partials;     // float (double) [R, ceil(I / kPartialColumns)], or null
  bool vector = false;
};

// out[e][n, k] (+)= sum over the rows r of e of left[r, n] * right[r, k].
struct WgradProduct {
  DType dtype;
  bool allow_tf32;
  int64_t num_rows, num_experts;
  int32_t n, k;
  const int32_t* expert_offsets;
  RowOperand left, right;  // k_stride is the stride over their columns
  void* out;
  int64_t out_expert_stride, out_n_stride, out_k_stride;
  bool accumulate;  // into float32 (float64 for float64 data), else out has the data's dtype
};

// Each engine implements these four. kUnsupported where the plan does not fit.
#define MOE_DECLARE_ENGINE(engine)                                                                         \
  namespace engine {                                                                                       \
  Outcome store(const RowsProduct&, const StoreEpilogue&, const GemmPlan&, Stream);                        \
  Outcome activate(const RowsProduct&, const ActivateEpilogue&, const GemmPlan&, Stream);                  \
  Outcome activate_backward(const RowsProduct&, const ActivateBackwardEpilogue&, const GemmPlan&, Stream); \
  Outcome wgrad(const WgradProduct&, const GemmPlan&, Stream);                                             \
  }
MOE_DECLARE_ENGINE(simt)
MOE_DECLARE_ENGINE(mma)
MOE_DECLARE_ENGINE(wgmma)
#undef MOE_DECLARE_ENGINE

}  // namespace moe::cuda
