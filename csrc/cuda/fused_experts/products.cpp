#include "cuda/fused_experts/products.h"

#include <algorithm>

namespace moe::cuda {

GemmPlan rows_plan(const FusedExpertsProblem& p, const ExpertsOptions& options, bool backward, const void* grad_y,
                   int64_t grad_y_stride) {
  const int64_t per_load = 16 / size_of(p.dtype);
  const auto whole_loads = [&](int64_t columns) { return columns % per_load == 0; };
  bool aligned = whole_loads(p.hidden_size) && whole_loads(p.intermediate_size) &&
                 is_aligned(p.dtype, weight_operand(p.w_gate_up)) && is_aligned(p.dtype, weight_operand(p.w_down)) &&
                 is_aligned(p.dtype, token_rows(p, p.x, p.x_stride, nullptr));
  if (backward) aligned = aligned && is_aligned(p.dtype, token_rows(p, grad_y, grad_y_stride, nullptr));
  return rows_plan({.capability = options.device.capability,
                    .multiprocessors = options.device.multiprocessors,
                    .shared_memory_per_block = options.device.shared_memory_per_block,
                    .dtype = p.dtype,
                    .allow_tf32 = options.allow_tf32,
                    .aligned = aligned,
                    .num_rows = p.num_rows,
                    .num_experts = p.num_experts,
                    .n = std::max(p.hidden_size, preact_size(p)),
                    .k = std::max(p.hidden_size, p.intermediate_size),
                    .deterministic = options.deterministic});
}

RowsProduct rows_product(const FusedExpertsProblem& p, const ExpertsOptions& options, const TileList& tiles,
                         const RowOperand& rows, const WeightOperand& weight, int64_t n, int64_t k) {
  return {.dtype = p.dtype,
          .allow_tf32 = options.allow_tf32,
          .num_rows = p.num_rows,
          .num_experts = p.num_experts,
          .n = static_cast<int32_t>(n),
          .k = static_cast<int32_t>(k),
          .tiles = tiles,
          .rows = rows,
          .weight = weight};
}

Outcome up_product(const FusedExpertsProblem& p, const ExpertsOptions& options, const TileList& tiles,
                   const int32_t* row_to_slot, PreactFormat format, void* preact, void* act, const GemmPlan& plan,
                   Stream stream) {
  const bool decode = tiles.decode.topk_ids != nullptr;
  const RowsProduct product =
      rows_product(p, options, tiles, token_rows(p, p.x, p.x_stride, decode ? nullptr : row_to_slot),
                   weight_operand(p.w_gate_up), preact_size(p), p.hidden_size);
  ActivateEpilogue epilogue = {};
  epilogue.rule = p.activation;
  epilogue.interleaved = p.interleaved;
  epilogue.bias = p.b_gate_up.data;
  epilogue.bias_expert_stride = p.b_gate_up.expert_stride;
  epilogue.bias_stride = p.b_gate_up.stride;
  epilogue.topk_weights = p.weights_on_input ? p.topk_weights : nullptr;
  epilogue.row_to_slot = row_to_slot;
  epilogue.num_slots = num_slots(p);
  epilogue.preact_format = format;
  epilogue.preact = preact;
  epilogue.act = act;
  return activate(product, epilogue, plan, stream);
}

}  // namespace moe::cuda
