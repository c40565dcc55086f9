#include <vector>

#include "cpu/fused_experts/fused_experts.h"
#include "cpu/fused_experts/products.h"
#include "cpu/isa.h"
#include "cpu/scratch.h"
#include "moe/tiled_weights.h"

namespace moe::cpu {

Status first_product(const FusedExpertsProblem& p, void* preact, bool preact_is_mxfp8, void* act,
                     const Parallel& parallel) {
  const GateLayout layout(p);
  EpilogueParams shared;
  shared.activation = p.activation;
  shared.up_offset = layout.up_offset;
  shared.gate_step = layout.gate_step;
  shared.bias_stride = p.b_gate_up.stride;
  shared.preact = preact;
  shared.preact_stride = preact_size(p);
  shared.preact_is_mxfp8 = preact_is_mxfp8;
  shared.mxfp8_scales = mxfp8_scales(p.intermediate_size);
  shared.act = act;
  shared.act_stride = p.intermediate_size;
  shared.slot_weights = p.topk_weights;
  shared.row_to_slot = p.row_to_slot;
  shared.weights_on_input = p.weights_on_input;
  shared.is_cold =
      outgrows_caches(p.num_rows * (p.intermediate_size + (preact ? preact_size(p) : 0)) * size_of(p.dtype));
  std::vector<EpilogueParams> epilogues(p.num_experts, shared);
  const auto describe = [&](int64_t e) {
    const int64_t begin = p.expert_offsets[e];
    if (p.b_gate_up.data) epilogues[e].bias = at(p.b_gate_up.data, e * p.b_gate_up.expert_stride, p.dtype);
    GemmJob job{};
    job.a = {.data = p.x,
             .outer_stride = p.x_stride,
             .k_stride = 1,
             .index = p.row_to_slot + begin,
             .index_divisor = p.top_k};
    job.b = {.data = at(p.w_gate_up.data, e * p.w_gate_up.expert_stride, p.dtype),
             .outer_stride = (p.w_gate_up.is_tiled ? 1 : layout.gate_step) * p.w_gate_up.n_stride,
             .k_stride = p.w_gate_up.k_stride,
             .is_tiled = p.w_gate_up.is_tiled};
    job.pair_offset = layout.up_offset * p.w_gate_up.n_stride;
    if (p.w_gate_up.is_tiled) job.pair_offset = is_gated(p.activation.kind) ? kTiledMultiple * p.hidden_size : 0;
    job.m = p.expert_offsets[e + 1] - begin;
    job.n = p.intermediate_size;
    job.k = p.hidden_size;
    job.epilogue = Epilogue::kActivation;
    job.params = &epilogues[e];
    job.row0 = begin;
    return job;
  };
  return run_grouped({p.dtype, p.num_experts, p.batch_invariant, describe}, parallel);
}

Status fused_experts(const FusedExpertsParams& params, const Parallel& parallel) {
  const FusedExpertsProblem& p = params.problem;
  const int64_t act_bytes = (p.num_rows * p.intermediate_size * size_of(p.dtype) + 63) / 64 * 64;
  Workspace workspace(act_bytes + p.num_rows * p.slab_columns * size_of(p.dtype) + 64);
  if (!workspace.data()) return Status::kOutOfMemory;
  void* act = workspace.data();
  void* rows = static_cast<char*>(workspace.data()) + act_bytes;

  if (const Status status = first_product(p, params.preact, p.preact_is_mxfp8, act, parallel); status != Status::kOk)
    return status;
  return for_slabs(p, [&](int64_t begin, int64_t end) {
    const GroupedGemmParams down = {
        .dtype = p.dtype,
        .num_experts = p.num_experts,
        .n = end - begin,
        .k = p.intermediate_size,
        .expert_offsets = p.expert_offsets,
        .rows = act,
        .rows_stride = p.intermediate_size,
        .rows_k_stride = 1,
        .gather = nullptr,
        .gather_divisor = 1,
        .weight = {at(p.w_down.data, begin * p.w_down.n_stride, p.dtype), p.w_down.expert_stride, p.w_down.n_stride,
                   p.w_down.k_stride, p.w_down.is_tiled},
        .bias = p.b_down.data ? at(p.b_down.data, begin * p.b_down.stride, p.dtype) : nullptr,
        .bias_expert_stride = p.b_down.expert_stride,
        .bias_stride = p.b_down.stride,
        .out = rows,
        .out_stride = end - begin,
        .batch_invariant = p.batch_invariant,
    };
    if (const Status status = grouped_gemm(down, parallel); status != Status::kOk) return status;
    const CombineParams combine = {
        .dtype = p.dtype,
        .num_tokens = p.num_tokens,
        .top_k = p.top_k,
        .hidden_size = end - begin,
        .rows = rows,
        .rows_stride = end - begin,
        .topk_weights = p.weights_on_input ? nullptr : p.topk_weights,
        .slot_to_row = p.slot_to_row,
        .out = at(params.y, begin, p.dtype),
        .out_stride = p.hidden_size,
    };
    parallel.for_ranges(p.num_tokens, 1,
                        [&](int64_t first, int64_t last) { kernels().combine_forward(combine, first, last); });
    return Status::kOk;
  });
}

}  // namespace moe::cpu
