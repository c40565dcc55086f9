// Five steps: the gradient through the activation (with the routing weights' gradient in its epilogue), two weight
// gradients that gather on the token axis, the input gradient by rows, and its sum over k.
#include <cstring>
#include <vector>

#include "cpu/combine/combine.h"
#include "cpu/fused_experts/fused_experts.h"
#include "cpu/fused_experts/products.h"
#include "cpu/isa.h"
#include "cpu/scratch.h"

namespace moe::cpu {
namespace {

class Backward {
 public:
  Backward(const FusedExpertsBackwardParams& params, const Parallel& parallel)
      : params_(params),
        p_(params.problem),
        parallel_(parallel),
        layout_(p_),
        rows_(p_.num_rows),
        preact_size_(preact_size(p_)),
        // A weight without elements has no address, but its bias may have some.
        weight_grads_(params.grad_w_gate_up.data || params.grad_b_gate_up || params.grad_b_down),
        partial_blocks_((p_.intermediate_size + column_block() - 1) / column_block()),
        workspace_(workspace_bytes()) {}

  Status run() {
    if (!workspace_.data()) return Status::kOutOfMemory;
    carve();
    const void* preact = params_.preact;
    if (!preact) {
      if (const Status s = first_product(p_, grad_preact_, false, nullptr, parallel_); s != Status::kOk) return s;
      preact = grad_preact_;  // each run of z is read before its gradient takes its place
    }
    if (const Status s = activation_gradient(preact); s != Status::kOk) return s;
    if (params_.grad_topk_weights && !p_.weights_on_input) routing_gradient();
    if (weight_grads_) {
      if (const Status s = weight_gradients(); s != Status::kOk) return s;
    }
    if (params_.grad_x || (params_.grad_topk_weights && p_.weights_on_input)) return input_gradient();
    return Status::kOk;
  }

 private:
  int64_t column_block() const { return kernels().gemm[static_cast<int>(p_.dtype)].column_block; }
  bool needs_scaled() const { return p_.weights_on_input && weight_grads_; }

  int64_t workspace_bytes() const {
    const int64_t width = size_of(p_.dtype), wide = accumulator_size(p_.dtype);
    return rows_ * preact_size_ * width * (needs_scaled() ? 2 : 1) +
           (weight_grads_ ? rows_ * p_.intermediate_size * width : 0) + rows_ * partial_blocks_ * wide +
           rows_ * p_.slab_columns * width + num_slots(p_) * wide + 6 * 64;
  }

  void carve() {
    char* at = static_cast<char*>(workspace_.data());
    const auto take = [&](int64_t bytes) {
      char* result = at;
      at += (bytes + 63) / 64 * 64;
      return result;
    };
    const int64_t width = size_of(p_.dtype), wide = accumulator_size(p_.dtype);
    grad_preact_ = take(rows_ * preact_size_ * width);
    if (needs_scaled()) grad_preact_scaled_ = take(rows_ * preact_size_ * width);
    if (weight_grads_) act_ = take(rows_ * p_.intermediate_size * width);
    partials_ = take(rows_ * partial_blocks_ * wide);
    slab_ = take(rows_ * p_.slab_columns * width);
    slab_dots_ = take(num_slots(p_) * wide);  // of slots, or of their fewer rows
  }

  // dA = grad_y W_down, and from it dz, the weighted activation and the partial sums of <dA, a>.
  Status activation_gradient(const void* preact) {
    EpilogueParams epilogue;
    epilogue.activation = p_.activation;
    epilogue.up_offset = layout_.up_offset;
    epilogue.gate_step = layout_.gate_step;
    epilogue.preact = const_cast<void*>(preact);
    epilogue.preact_stride = preact_size_;
    epilogue.preact_is_mxfp8 = params_.preact && p_.preact_is_mxfp8;
    epilogue.mxfp8_scales = mxfp8_scales(p_.intermediate_size);
    epilogue.act = act_;
    epilogue.act_stride = p_.intermediate_size;
    epilogue.slot_weights = p_.topk_weights;
    epilogue.row_to_slot = p_.row_to_slot;
    epilogue.weights_on_input = p_.weights_on_input;
    epilogue.is_cold = outgrows_caches(workspace_bytes());
    epilogue.grad_preact = grad_preact_;
    epilogue.grad_preact_scaled = grad_preact_scaled_;
    if (params_.grad_topk_weights && !p_.weights_on_input) epilogue.weight_grad_partials = partials_;
    epilogue.partials_stride = partial_blocks_;
    const auto describe = [&](int64_t e) {
      const int64_t begin = p_.expert_offsets[e];
      GemmJob job{};
      job.a = {.data = params_.grad_y,
               .outer_stride = params_.grad_y_stride,
               .k_stride = 1,
               .index = p_.row_to_slot + begin,
               .index_divisor = p_.top_k};
      job.b = {.data = at(p_.w_down.data, e * p_.w_down.expert_stride, p_.dtype),
               .outer_stride = p_.w_down.k_stride,
               .k_stride = p_.w_down.n_stride};
      job.m = p_.expert_offsets[e + 1] - begin;
      job.n = p_.intermediate_size;
      job.k = p_.hidden_size;
      job.epilogue = Epilogue::kActivationBackward;
      job.params = &epilogue;
      job.row0 = begin;
      return job;
    };
    return run_grouped({p_.dtype, p_.num_experts, p_.batch_invariant, describe}, parallel_);
  }

  // d topk_weights = <dA, a> (+ <grad_y, b_down>): the rows that were combined are never needed again.
  void routing_gradient() {
    if (p_.dtype == DType::kFloat64) {
      sum_partials<double>();
    } else {
      sum_partials<float>();
    }
  }

  template <class A>
  void sum_partials() {
    A* grad = static_cast<A*>(params_.grad_topk_weights);
    const A* partials = static_cast<const A*>(partials_);
    A* bias_dots = static_cast<A*>(slab_dots_);
    if (p_.b_down.data) bias_products(bias_dots);
    parallel_.for_ranges(num_slots(p_), 1024, [&](int64_t begin, int64_t end) {
      for (int64_t slot = begin; slot < end; ++slot) {
        const int64_t row = p_.slot_to_row[slot];
        A sum = 0;
        if (row >= 0) {
          for (int64_t block = 0; block < partial_blocks_; ++block) sum += partials[row * partial_blocks_ + block];
          if (p_.b_down.data) sum += bias_dots[row];
        }
        grad[slot] = sum;
      }
    });
  }

  // dots[row] = <grad_y[token of row], b_down[expert of row]>.
  template <class A>
  void bias_products(A* dots) {
    parallel_.for_each(p_.num_experts, [&](int64_t e) {
      const char* bias = at(p_.b_down.data, e * p_.b_down.expert_stride, p_.dtype);
      for (int64_t row = p_.expert_offsets[e]; row < p_.expert_offsets[e + 1]; ++row) {
        const int64_t token = p_.row_to_slot[row] / p_.top_k;
        kernels().dot(p_.dtype, at(params_.grad_y, token * params_.grad_y_stride, p_.dtype), 1, bias, p_.b_down.stride,
                      p_.hidden_size, dots + row);
      }
    });
  }

  Status weight_gradients() {
    const ExpertMatrix& down = params_.grad_w_down;
    const GroupedGemmWgradParams grad_w_down = {
        .dtype = p_.dtype,
        .num_experts = p_.num_experts,
        .n = p_.hidden_size,
        .k = p_.intermediate_size,
        .expert_offsets = p_.expert_offsets,
        .grad_out = params_.grad_y,
        .grad_out_stride = params_.grad_y_stride,
        .grad_out_n_stride = 1,
        .grad_out_gather = p_.row_to_slot,
        .rows = act_,
        .rows_stride = p_.intermediate_size,
        .rows_k_stride = 1,
        .gather = nullptr,
        .gather_divisor = p_.top_k,
        .out = const_cast<void*>(down.data),
        .out_expert_stride = down.expert_stride,
        .out_n_stride = down.n_stride,
        .out_k_stride = down.k_stride,
        .accumulate = false,
    };
    if (const Status s = grouped_gemm_wgrad(grad_w_down, parallel_); s != Status::kOk) return s;
    const ExpertMatrix& gate_up = params_.grad_w_gate_up;
    const GroupedGemmWgradParams grad_w_gate_up = {
        .dtype = p_.dtype,
        .num_experts = p_.num_experts,
        .n = preact_size_,
        .k = p_.hidden_size,
        .expert_offsets = p_.expert_offsets,
        .grad_out = needs_scaled() ? grad_preact_scaled_ : grad_preact_,
        .grad_out_stride = preact_size_,
        .grad_out_n_stride = 1,
        .grad_out_gather = nullptr,
        .rows = p_.x,
        .rows_stride = p_.x_stride,
        .rows_k_stride = 1,
        .gather = p_.row_to_slot,
        .gather_divisor = p_.top_k,
        .out = const_cast<void*>(gate_up.data),
        .out_expert_stride = gate_up.expert_stride,
        .out_n_stride = gate_up.n_stride,
        .out_k_stride = gate_up.k_stride,
        .accumulate = false,
    };
    if (const Status s = grouped_gemm_wgrad(grad_w_gate_up, parallel_); s != Status::kOk) return s;
    if (params_.grad_b_gate_up) {
      segment_sums({.dtype = p_.dtype,
                    .num_experts = p_.num_experts,
                    .width = preact_size_,
                    .rows = grad_preact_,
                    .rows_stride = preact_size_,
                    .expert_offsets = p_.expert_offsets,
                    .out = params_.grad_b_gate_up});
    }
    if (params_.grad_b_down) {
      segment_sums({.dtype = p_.dtype,
                    .num_experts = p_.num_experts,
                    .width = p_.hidden_size,
                    .rows = params_.grad_y,
                    .rows_stride = params_.grad_y_stride,
                    .expert_offsets = p_.expert_offsets,
                    .out = params_.grad_b_down,
                    .row_to_slot = p_.row_to_slot,
                    .top_k = p_.top_k,
                    .topk_weights = p_.weights_on_input ? nullptr : p_.topk_weights});
    }
    return Status::kOk;
  }

  void segment_sums(const SegmentSumParams& sums) { segment_sum(sums, parallel_); }

  // Rows of dz W_gate_up, a slab of columns at a time, summed over k into grad_x.
  Status input_gradient() {
    if (p_.hidden_size == 0 && params_.grad_topk_weights && p_.weights_on_input) {
      std::memset(params_.grad_topk_weights, 0,
                  num_slots(p_) * accumulator_size(p_.dtype));  // there is no slab to begin it
    }
    return for_slabs(p_, [&](int64_t begin, int64_t end) {
      const GroupedGemmParams product = {
          .dtype = p_.dtype,
          .num_experts = p_.num_experts,
          .n = end - begin,
          .k = preact_size_,
          .expert_offsets = p_.expert_offsets,
          .rows = grad_preact_,
          .rows_stride = preact_size_,
          .rows_k_stride = 1,
          .gather = nullptr,
          .gather_divisor = 1,
          .weight = {at(p_.w_gate_up.data, begin * p_.w_gate_up.k_stride, p_.dtype), p_.w_gate_up.expert_stride,
                     p_.w_gate_up.k_stride, p_.w_gate_up.n_stride},
          .bias = nullptr,
          .bias_expert_stride = 0,
          .bias_stride = 0,
          .out = slab_,
          .out_stride = end - begin,
      };
      if (const Status s = grouped_gemm(product, parallel_); s != Status::kOk) return s;
      if (params_.grad_x) {
        const CombineParams sum = {
            .dtype = p_.dtype,
            .num_tokens = p_.num_tokens,
            .top_k = p_.top_k,
            .hidden_size = end - begin,
            .rows = slab_,
            .rows_stride = end - begin,
            .topk_weights = p_.weights_on_input ? p_.topk_weights : nullptr,
            .slot_to_row = p_.slot_to_row,
            .out = at(params_.grad_x, begin, p_.dtype),
            .out_stride = p_.hidden_size,
        };
        parallel_.for_ranges(p_.num_tokens, 1,
                             [&](int64_t first, int64_t last) { kernels().combine_forward(sum, first, last); });
      }
      if (params_.grad_topk_weights && p_.weights_on_input) input_weight_gradient(begin, end);
      return Status::kOk;
    });
  }

  // With the weight on the input, d topk_weights = <x, dz W_gate_up>, slab by slab in order.
  void input_weight_gradient(int64_t begin, int64_t end) {
    const CombineBackwardParams dots = {
        .dtype = p_.dtype,
        .num_tokens = p_.num_tokens,
        .top_k = p_.top_k,
        .hidden_size = end - begin,
        .grad_y = at(p_.x, begin, p_.dtype),
        .grad_y_stride = p_.x_stride,
        .rows = slab_,
        .rows_stride = end - begin,
        .topk_weights = p_.topk_weights,
        .slot_to_row = p_.slot_to_row,
        .grad_rows = nullptr,
        .grad_topk_weights = begin == 0 ? params_.grad_topk_weights : slab_dots_,
    };
    parallel_.for_ranges(p_.num_tokens, 1,
                         [&](int64_t first, int64_t last) { kernels().combine_backward(dots, first, last); });
    if (begin == 0) return;
    if (p_.dtype == DType::kFloat64) {
      add_to_routing_gradient<double>();
    } else {
      add_to_routing_gradient<float>();
    }
  }

  template <class A>
  void add_to_routing_gradient() {
    A* grad = static_cast<A*>(params_.grad_topk_weights);
    const A* more = static_cast<const A*>(slab_dots_);
    for (int64_t slot = 0; slot < num_slots(p_); ++slot) grad[slot] += more[slot];
  }

  const FusedExpertsBackwardParams& params_;
  const FusedExpertsProblem& p_;
  const Parallel& parallel_;
  const GateLayout layout_;
  const int64_t rows_, preact_size_;
  const bool weight_grads_;
  const int64_t partial_blocks_;
  Workspace workspace_;
  void* grad_preact_ = nullptr;
  void* grad_preact_scaled_ = nullptr;
  void* act_ = nullptr;
  void* partials_ = nullptr;
  void* slab_ = nullptr;
  void* slab_dots_ = nullptr;
};

}  // namespace

Status fused_experts_backward(const FusedExpertsBackwardParams& params, const Parallel& parallel) {
  return Backward(params, parallel).run();
}

}  // namespace moe::cpu
