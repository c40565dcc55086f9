#include <algorithm>

#include "cuda/combine/combine.h"
#include "cuda/fused_experts/fused_experts.h"
#include "cuda/fused_experts/products.h"
#include "cuda/grouped_gemm/plans.h"
#include "cuda/permute/permute.h"
#include "cuda/workspace.h"

namespace moe::cuda {
namespace {

class Backward {
 public:
  Backward(const FusedExpertsBackwardLaunch& launch, void* memory)
      : params_(launch.params),
        options_(launch.options),
        p_(launch.params.problem),
        rows_(p_.num_rows),
        preact_size_(preact_size(p_)),
        // A weight without elements has no address, but its bias may have some.
        weight_grads_(params_.grad_w_gate_up.data || params_.grad_w_down.data || params_.grad_b_gate_up ||
                      params_.grad_b_down),
        rows_needed_(params_.grad_x || (params_.grad_topk_weights && p_.weights_on_input)),
        plan_(rows_plan(p_, options_, true, params_.grad_y, params_.grad_y_stride)),
        workspace_(memory) {
    const int64_t width = size_of(p_.dtype);
    tiles_.tiles = workspace_.take<Tile>(max_tiles(rows_, p_.num_experts, plan_.block_m));
    tiles_.count = workspace_.take<int32_t>(1);
    row_to_slot_ = workspace_.take<int32_t>(rows_);
    grad_preact_ = workspace_.take_bytes(rows_ * preact_size_ * width);
    if (params_.grad_w_down.data) act_ = workspace_.take_bytes(rows_ * p_.intermediate_size * width);
    if (sums_partials()) partials_ = workspace_.take_bytes(rows_ * num_partials() * sum_size(p_.dtype));
    if (rows_needed_) slab_ = workspace_.take_bytes(rows_ * p_.slab_columns * width);
  }

  int64_t workspace_bytes() const { return workspace_.used(); }

  Outcome run(Stream stream) {
    Outcome outcome = restore_routing({.num_tokens = p_.num_tokens,
                                       .top_k = p_.top_k,
                                       .num_experts = p_.num_experts,
                                       .expert_offsets = p_.expert_offsets,
                                       .slot_to_row = p_.slot_to_row,
                                       .row_to_slot = row_to_slot_,
                                       .num_rows = rows_,
                                       .tiles = {plan_.block_m, tiles_.tiles, tiles_.count}},
                                      stream);
    if (outcome.ok()) outcome = through_activation(stream);
    if (outcome.ok() && weight_grads_) outcome = down_weight_gradients(stream);
    if (outcome.ok() && params_.grad_b_gate_up) outcome = sum_grad_preact(stream);
    if (outcome.ok()) outcome = input_gradient(stream);
    if (outcome.ok() && params_.grad_w_gate_up.data) outcome = up_weight_gradient(stream);
    return outcome;
  }

 private:
  bool sums_partials() const { return params_.grad_topk_weights && !p_.weights_on_input; }
  int64_t num_partials() const { return (p_.intermediate_size + kPartialColumns - 1) / kPartialColumns; }
  const void* output_weights() const { return p_.weights_on_input ? nullptr : p_.topk_weights; }

  // grad_y W_down, and back through the activation: grad_preact, the weighted activation, <grad_y W_down, activation>.
  Outcome through_activation(Stream stream) {
    const void* preact = params_.preact;
    PreactFormat format = kept_format(p_);
    if (preact == nullptr) {
      format = PreactFormat::kSameAsData;
      const Outcome again =
          up_product(p_, options_, tiles_, row_to_slot_, format, grad_preact_, nullptr, plan_, stream);
      if (!again.ok()) return again;
      preact = grad_preact_;  // each value is read before its gradient takes its place
    }
    const RowsProduct product =
        rows_product(p_, options_, tiles_, token_rows(p_, params_.grad_y, params_.grad_y_stride, row_to_slot_),
                     transposed(weight_operand(p_.w_down)), p_.intermediate_size, p_.hidden_size);
    ActivateBackwardEpilogue epilogue = {};
    epilogue.rule = p_.activation;
    epilogue.interleaved = p_.interleaved;
    epilogue.preact_format = format;
    epilogue.preact = preact;
    epilogue.topk_weights = output_weights();
    epilogue.row_to_slot = row_to_slot_;
    epilogue.num_slots = num_slots(p_);
    epilogue.grad_preact = grad_preact_;
    epilogue.act_scaled = act_;
    epilogue.partials = partials_;
    return activate_backward(product, epilogue, plan_, stream);
  }

  Outcome weight_gradient(const RowOperand& left, const RowOperand& right, const ExpertMatrix& grad, int64_t n,
                          int64_t k, Stream stream) {
    WgradProduct product = {};
    product.dtype = p_.dtype;
    product.allow_tf32 = options_.allow_tf32;
    product.num_rows = rows_;
    product.num_experts = p_.num_experts;
    product.n = static_cast<int32_t>(n);
    product.k = static_cast<int32_t>(k);
    product.expert_offsets = p_.expert_offsets;
    product.left = left;
    product.right = right;
    product.out = const_cast<void*>(grad.data);
    product.out_expert_stride = grad.expert_stride;
    product.out_n_stride = grad.n_stride;
    product.out_k_stride = grad.k_stride;
    return wgrad(product, wgrad_plan(product, options_.device, options_.deterministic), stream);
  }

  Outcome down_weight_gradients(Stream stream) {
    if (params_.grad_b_down) {
      SegmentSumLaunch sum = {};
      sum.params.dtype = p_.dtype;
      sum.params.num_experts = p_.num_experts;
      sum.params.width = p_.hidden_size;
      sum.params.rows = params_.grad_y;
      sum.params.rows_stride = params_.grad_y_stride;
      sum.params.expert_offsets = p_.expert_offsets;
      sum.params.out = params_.grad_b_down;
      sum.params.row_to_slot = row_to_slot_;
      sum.params.top_k = std::max<int64_t>(p_.top_k, 1);
      sum.params.topk_weights = output_weights();
      sum.num_rows = rows_;
      sum.num_tokens = p_.num_tokens;
      if (const Outcome o = segment_sum(sum, stream); !o.ok()) return o;
    }
    if (!params_.grad_w_down.data) return {};
    return weight_gradient(token_rows(p_, params_.grad_y, params_.grad_y_stride, row_to_slot_),
                           sorted_rows(p_, act_, p_.intermediate_size), params_.grad_w_down, p_.hidden_size,
                           p_.intermediate_size, stream);
  }

  Outcome sum_grad_preact(Stream stream) {
    SegmentSumLaunch sum = {};
    sum.params.dtype = p_.dtype;
    sum.params.num_experts = p_.num_experts;
    sum.params.width = preact_size_;
    sum.params.rows = grad_preact_;
    sum.params.rows_stride = preact_size_;
    sum.params.expert_offsets = p_.expert_offsets;
    sum.params.out = params_.grad_b_gate_up;
    sum.num_rows = rows_;
    sum.num_tokens = rows_;
    return segment_sum(sum, stream);
  }

  // After the input gradient, which wants grad_preact as it is: with weights on the input, x counts weighted here.
  Outcome up_weight_gradient(Stream stream) {
    if (p_.weights_on_input) {
      const Outcome scaled = scale_rows({.dtype = p_.dtype,
                                         .num_rows = rows_,
                                         .width = preact_size_,
                                         .num_experts = p_.num_experts,
                                         .num_slots = num_slots(p_),
                                         .rows = grad_preact_,
                                         .expert_offsets = p_.expert_offsets,
                                         .row_to_slot = row_to_slot_,
                                         .topk_weights = p_.topk_weights},
                                        stream);
      if (!scaled.ok()) return scaled;
    }
    return weight_gradient(sorted_rows(p_, grad_preact_, preact_size_), token_rows(p_, p_.x, p_.x_stride, row_to_slot_),
                           params_.grad_w_gate_up, preact_size_, p_.hidden_size, stream);
  }

  // Rows of grad_preact W_gate_up, a slab of columns at a time, summed over k into grad_x; and the gradient of the
  // routing weights: what the activation left in partials, or, with weights on the input, <x, those rows>.
  Outcome input_gradient(Stream stream) {
    if (!rows_needed_ && !sums_partials()) return {};
    if (!rows_needed_) return sum_over_k(0, 0, stream);
    for (int64_t begin = 0; begin == 0 || begin < p_.hidden_size; begin += p_.slab_columns) {
      const int64_t columns = std::min(p_.slab_columns, p_.hidden_size - begin);
      WeightOperand weight = transposed(weight_operand(p_.w_gate_up));
      weight.data = at(weight.data, begin * weight.n_stride, p_.dtype);
      const RowsProduct product = rows_product(p_, options_, tiles_, sorted_rows(p_, grad_preact_, preact_size_),
                                               weight, columns, preact_size_);
      StoreEpilogue epilogue = {};
      epilogue.out = slab_;
      epilogue.out_stride = p_.slab_columns;
      if (const Outcome o = store(product, epilogue, plan_, stream); !o.ok()) return o;
      if (const Outcome o = sum_over_k(begin, columns, stream); !o.ok()) return o;
    }
    return {};
  }

  Outcome sum_over_k(int64_t begin, int64_t columns, Stream stream) {
    const CombineParams sum = {.dtype = p_.dtype,
                               .num_tokens = p_.num_tokens,
                               .top_k = p_.top_k,
                               .hidden_size = columns,
                               .rows = slab_,
                               .rows_stride = p_.slab_columns,
                               .topk_weights = p_.weights_on_input ? p_.topk_weights : nullptr,
                               .slot_to_row = p_.slot_to_row,
                               .out = at(params_.grad_x, begin, p_.dtype),
                               .out_stride = p_.hidden_size};
    CombineExtras extras = {.num_rows = rows_};
    if (params_.grad_topk_weights && p_.weights_on_input) {
      extras.others = at(p_.x, begin, p_.dtype);
      extras.others_stride = p_.x_stride;
      extras.dots = params_.grad_topk_weights;
      extras.accumulate_dots = begin > 0;
    } else if (sums_partials() && begin == 0) {
      extras.partials = partials_;
      extras.num_partials = num_partials();
      extras.sums = params_.grad_topk_weights;
      extras.others = params_.grad_y;
      extras.others_stride = params_.grad_y_stride;
      extras.others_size = p_.hidden_size;
      extras.bias = p_.b_down.data;
      extras.bias_expert_stride = p_.b_down.expert_stride;
      extras.bias_stride = p_.b_down.stride;
      extras.expert_offsets = p_.expert_offsets;
      extras.num_experts = p_.num_experts;
    }
    return combine_forward(sum, extras, stream);
  }

  const FusedExpertsBackwardParams& params_;
  const ExpertsOptions& options_;
  const FusedExpertsProblem& p_;
  int64_t rows_, preact_size_;
  bool weight_grads_, rows_needed_;
  GemmPlan plan_;
  Workspace workspace_;
  TileList tiles_ = {};
  int32_t* row_to_slot_ = nullptr;
  void* grad_preact_ = nullptr;
  void* act_ = nullptr;
  void* partials_ = nullptr;
  void* slab_ = nullptr;
};

}  // namespace

int64_t fused_experts_backward_workspace_bytes(const FusedExpertsBackwardLaunch& launch) {
  return Backward(launch, nullptr).workspace_bytes();
}

Outcome fused_experts_backward(const FusedExpertsBackwardLaunch& launch, void* workspace, Stream stream) {
  return Backward(launch, workspace).run(stream);
}

}  // namespace moe::cuda
