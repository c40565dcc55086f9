#include "cuda/combine/combine.h"
#include "cuda/fused_experts/fused_experts.h"
#include "cuda/fused_experts/products.h"
#include "cuda/permute/permute.h"
#include "cuda/workspace.h"

namespace moe::cuda {
namespace {

class Forward {
 public:
  Forward(const FusedExpertsLaunch& launch, void* memory)
      : launch_(launch),
        p_(launch.params.problem),
        rows_(p_.num_rows),
        plan_(rows_plan(p_, launch.options, false, nullptr, 0)),
        workspace_(memory) {
    tiles_.tiles = workspace_.take<Tile>(max_tiles(rows_, p_.num_experts, plan_.block_m));
    tiles_.count = workspace_.take<int32_t>(1);
    row_to_slot_ = workspace_.take<int32_t>(num_slots(p_));
    act_ = workspace_.take_bytes(rows_ * p_.intermediate_size * size_of(p_.dtype));
    slab_ = workspace_.take_bytes(rows_ * p_.slab_columns * size_of(p_.dtype));
    routing_ = {.num_tokens = p_.num_tokens,
                .top_k = p_.top_k,
                .num_experts = p_.num_experts,
                .topk_ids = launch.topk_ids,
                .ids_are_int64 = launch.ids_are_int64,
                .expert_offsets = launch.expert_offsets,
                .row_to_slot = row_to_slot_,
                .slot_to_row = launch.slot_to_row,
                .max_rows = rows_};
    counters_ = workspace_.take_bytes(skips_sort() ? 0 : permute_workspace_bytes(routing_));
  }

  int64_t workspace_bytes() const { return workspace_.used(); }

  Outcome run(Stream stream) {
    if (skips_sort()) {
      tiles_.decode = {.topk_ids = launch_.topk_ids,
                       .ids_are_int64 = launch_.ids_are_int64,
                       .num_slots = static_cast<int32_t>(rows_),
                       .num_experts = static_cast<int32_t>(p_.num_experts),
                       .expert_offsets = launch_.expert_offsets,
                       .row_to_slot = row_to_slot_,
                       .slot_to_row = launch_.slot_to_row};
    } else {
      const TileOutput wanted = {.block_m = plan_.block_m, .tiles = tiles_.tiles, .count = tiles_.count};
      if (const Outcome o = permute(routing_, wanted, counters_, stream); !o.ok()) return o;
    }
    const Outcome up = up_product(p_, launch_.options, tiles_, row_to_slot_, kept_format(p_), launch_.params.preact,
                                  act_, plan_, stream);
    if (!up.ok()) return up;
    tiles_.decode = {};
    for (int64_t begin = 0; begin == 0 || begin < p_.hidden_size; begin += p_.slab_columns) {
      if (const Outcome o = down_and_combine(begin, stream); !o.ok()) return o;
    }
    return {};
  }

 private:
  // The first product then finds the rows of each tile by itself, and writes down what it found.
  bool skips_sort() const {
    return plan_.family == Family::kMma && plan_.block_m == 16 && rows_ > 0 && rows_ == num_slots(p_) &&
           rows_ <= kMaxDecodeSlots && preact_size(p_) > 0 && !launch_.options.deterministic;
  }

  // Columns of y from `begin` on.
  Outcome down_and_combine(int64_t begin, Stream stream) {
    const int64_t columns = std::min(p_.slab_columns, p_.hidden_size - begin);
    WeightOperand weight = weight_operand(p_.w_down);
    weight.data = at(weight.data, begin * weight.n_stride, p_.dtype);
    const StoreEpilogue epilogue = {.bias = at(p_.b_down.data, begin * p_.b_down.stride, p_.dtype),
                                    .bias_expert_stride = p_.b_down.expert_stride,
                                    .bias_stride = p_.b_down.stride,
                                    .out = slab_,
                                    .out_stride = p_.slab_columns};
    const RowsProduct down = rows_product(p_, launch_.options, tiles_, sorted_rows(p_, act_, p_.intermediate_size),
                                          weight, columns, p_.intermediate_size);
    if (const Outcome o = store(down, epilogue, plan_, stream); !o.ok()) return o;
    return combine_forward({.dtype = p_.dtype,
                            .num_tokens = p_.num_tokens,
                            .top_k = p_.top_k,
                            .hidden_size = columns,
                            .rows = slab_,
                            .rows_stride = p_.slab_columns,
                            .topk_weights = p_.weights_on_input ? nullptr : p_.topk_weights,
                            .slot_to_row = launch_.slot_to_row,
                            .out = at(launch_.params.y, begin, p_.dtype),
                            .out_stride = p_.hidden_size},
                           {.num_rows = rows_}, stream);
  }

  const FusedExpertsLaunch& launch_;
  const FusedExpertsProblem& p_;
  int64_t rows_;
  GemmPlan plan_;
  Workspace workspace_;
  PermuteParams routing_;
  TileList tiles_ = {};
  int32_t* row_to_slot_;
  void* act_;
  void* slab_;
  void* counters_;
};

}  // namespace

int64_t fused_experts_workspace_bytes(const FusedExpertsLaunch& launch) {
  return Forward(launch, nullptr).workspace_bytes();
}

Outcome fused_experts(const FusedExpertsLaunch& launch, void* workspace, Stream stream) {
  return Forward(launch, workspace).run(stream);
}

}  // namespace moe::cuda
