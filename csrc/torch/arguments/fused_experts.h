// The arguments of fused_experts and fused_experts_backward, checked, and their results, allocated.
#pragma once

#include <algorithm>
#include <optional>
#include <string>
#include <tuple>

#include "moe/fused_experts.h"
#include "moe/tiled_weights.h"
#include "torch/checks.h"

namespace moe::torch_ops {

// A slab is never narrower: below this a product reads its rows too often.
constexpr int64_t kNarrowestSlab = 64;

inline Activation activation_named(const Checks& checks, const std::string& name) {
  return static_cast<Activation>(checks.choice(
      name, "activation",
      {"swiglu", "geglu", "geglu_tanh", "reglu", "clamped_swiglu", "silu", "gelu", "gelu_tanh", "relu", "relu2"}));
}

// Of weights that were tiled.
constexpr int64_t kTiledDims = 5;

// The arguments that forward and backward share, checked; keeps contiguous copies alive where one was needed.
struct Experts {
  Checks checks;
  Tensor x, topk_weights;
  std::optional<Tensor> distinct_w_gate_up;
  FusedExpertsProblem problem = {};
  int64_t preact_size = 0;

  Experts(const char* op, Place place, const Tensor& given_x, const Tensor& w_gate_up, const Tensor& w_down,
          const Tensor& given_weights, const std::optional<Tensor>& b_gate_up, const std::optional<Tensor>& b_down,
          const std::string& activation, double alpha, double limit, bool interleaved, bool transposed,
          const std::string& apply_weights, const std::optional<int64_t>& max_rows)
      : checks(op, place), x(given_x), topk_weights(given_weights) {
    FusedExpertsProblem& p = problem;
    checks.has_dims(x, "x", 2, "[T, H]");
    x = with_unit_inner_stride(x);
    p.dtype = checks.data_dtype(x, "x");
    p.num_tokens = x.size(0);
    p.hidden_size = x.size(1);
    p.activation = {activation_named(checks, activation), alpha, limit};
    p.interleaved = interleaved;
    p.weights_on_input = checks.choice(apply_weights, "apply_weights", {"output", "input"}) == 1;
    p.x = x.const_data_ptr();
    p.x_stride = x.stride(0);
    if (place == Place::kCpu && w_gate_up.dim() == kTiledDims) {
      take_tiles(w_gate_up, w_down);
    } else {
      take_weights(w_gate_up, w_down, transposed);
    }
    p.b_gate_up = bias(b_gate_up, "b_gate_up", preact_size);
    p.b_down = bias(b_down, "b_down", p.hidden_size);
    checks.has_dims(topk_weights, "topk_weights", 2, "[T, K]");
    p.top_k = topk_weights.size(1);
    topk_weights = checks.routing_weights(topk_weights, "topk_weights", p.dtype, p.num_tokens, p.top_k);
    p.topk_weights = topk_weights.const_data_ptr();
    checks.check(p.num_tokens * p.top_k < INT32_MAX, "T * K must be below 2^31 - 1, got ", p.num_tokens, " * ",
                 p.top_k);
    checks.check(!max_rows || *max_rows >= 0, "max_rows must be at least 0, got ", max_rows.value_or(0));
    p.num_rows = num_slots();
    if (max_rows) p.num_rows = std::min(p.num_rows, *max_rows);
  }

  void take_weights(const Tensor& w_gate_up, const Tensor& w_down, bool transposed) {
    FusedExpertsProblem& p = problem;
    checks.has_dims(w_gate_up, "w_gate_up", 3, transposed ? "[E, H, G]" : "[E, G, H]");
    checks.has_dims(w_down, "w_down", 3, transposed ? "[E, I, H]" : "[E, H, I]");
    checks.has_dtype(w_gate_up, "w_gate_up", x.scalar_type());
    checks.has_dtype(w_down, "w_down", x.scalar_type());
    p.num_experts = w_down.size(0);
    checks.check(p.num_experts >= 1, "w_down must have at least one expert, got ", shape_text(w_down));
    p.intermediate_size = w_down.size(transposed ? 1 : 2);
    preact_size = is_gated(p.activation.kind) ? 2 * p.intermediate_size : p.intermediate_size;
    checks.has_size(w_down, "w_down", transposed ? 2 : 1, p.hidden_size, "H");
    checks.has_size(w_gate_up, "w_gate_up", 0, p.num_experts, "E");
    checks.has_size(w_gate_up, "w_gate_up", transposed ? 1 : 2, p.hidden_size, "H");
    checks.has_size(w_gate_up, "w_gate_up", transposed ? 2 : 1, preact_size, "G");
    p.w_gate_up = matrix(w_gate_up, transposed);
    if (is_gated(p.activation.kind) && p.w_gate_up.n_stride == 0 && preact_size > 0) {
      // Expanded along G: a kernel tells gate from up by how far apart they lie.
      distinct_w_gate_up = torch::stable::contiguous(w_gate_up);
      p.w_gate_up = matrix(*distinct_w_gate_up, transposed);
    }
    p.w_down = matrix(w_down, transposed);
  }

  // Weights as tile_weights made them, whose sizes tell those of the experts.
  void take_tiles(const Tensor& w_gate_up, const Tensor& w_down) {
    FusedExpertsProblem& p = problem;
    checks.check(p.dtype == DType::kBFloat16, "with tiled weights x must be BFloat16, got ", x.scalar_type());
    checks.has_dims(w_down, "w_down", kTiledDims, "[E, panels, parts, steps, 1024], as w_gate_up is");
    p.num_experts = w_down.size(0);
    checks.check(p.num_experts >= 1, "w_down must have at least one expert, got ", shape_text(w_down));
    p.intermediate_size = w_gate_up.size(1) * kTiledMultiple;
    const int64_t parts = is_gated(p.activation.kind) ? 2 : 1;
    preact_size = parts * p.intermediate_size;
    p.w_gate_up = tiles(w_gate_up, "w_gate_up", p.intermediate_size, parts, p.hidden_size);
    p.w_down = tiles(w_down, "w_down", p.hidden_size, 1, p.intermediate_size);
  }

  ExpertMatrix tiles(const Tensor& weight, const char* name, int64_t n, int64_t parts, int64_t k) const {
    checks.has_dtype(weight, name, ScalarType::BFloat16);
    checks.has_size(weight, name, 0, problem.num_experts, "E");
    checks.check(weight.size(1) * kTiledMultiple == n && weight.size(2) == parts &&
                     weight.size(3) * kTiledMultiple == k && weight.size(4) == kTiledStep && weight.is_contiguous(),
                 name, " must be the tiles of ", parts, " times [", n, ", ", k, "], contiguous, got ",
                 shape_text(weight));
    return {weight.const_data_ptr(), weight.stride(0), parts * k, 0, true};
  }

  static ExpertMatrix matrix(const Tensor& weight, bool transposed) {
    return {weight.const_data_ptr(), weight.stride(0), weight.stride(transposed ? 2 : 1),
            weight.stride(transposed ? 1 : 2)};
  }

  ExpertVector bias(const std::optional<Tensor>& given, const char* name, int64_t size) const {
    if (!given) return {nullptr, 0, 0};
    checks.has_dims(*given, name, 2, size == preact_size ? "[E, G]" : "[E, H]");
    checks.has_dtype(*given, name, x.scalar_type());
    checks.has_size(*given, name, 0, problem.num_experts, "E");
    checks.has_size(*given, name, 1, size, "its width");
    return {given->const_data_ptr(), given->stride(0), given->stride(1)};
  }

  int64_t num_slots() const { return problem.num_tokens * problem.top_k; }
  int64_t num_rows() const { return problem.num_rows; }

  // Of what is kept of the pre-activation: [R, G], or rows of MXFP8 bytes.
  int64_t preact_width() const {
    const bool gated = is_gated(problem.activation.kind);
    return problem.preact_is_mxfp8 ? mxfp8_row_bytes(problem.intermediate_size, gated) : preact_size;
  }
  ScalarType preact_dtype() const { return problem.preact_is_mxfp8 ? ScalarType::Byte : x.scalar_type(); }
  void check_mxfp8() const {
    checks.check(!problem.preact_is_mxfp8 || problem.dtype != DType::kFloat64,
                 "save = fp8 is for Float, BFloat16 and Half, got Double");
  }

  // As many columns of a transient [R, H] buffer as the limit allows, whole cache lines of them.
  void set_slab(const std::optional<int64_t>& workspace_limit) {
    problem.slab_columns = std::max<int64_t>(problem.hidden_size, 1);
    if (!workspace_limit || num_rows() == 0) return;
    const int64_t column_bytes = num_rows() * size_of(problem.dtype);
    const int64_t columns = *workspace_limit / column_bytes / kNarrowestSlab * kNarrowestSlab;
    if (columns >= problem.hidden_size) return;
    checks.check(columns >= kNarrowestSlab, "workspace_limit must be at least ", kNarrowestSlab * column_bytes,
                 " bytes for ", num_rows(), " rows (", kNarrowestSlab, " columns of each), got ", *workspace_limit);
    problem.slab_columns = columns;
  }
};

struct FusedExpertsArguments : Experts {
  Tensor ids, expert_offsets, slot_to_row, y, preact;
  bool ids_are_int64;
  bool keep_preact;

  FusedExpertsArguments(Place place, const Tensor& given_x, const Tensor& w_gate_up, const Tensor& w_down,
                        const Tensor& given_weights, const Tensor& topk_ids, const std::optional<Tensor>& b_gate_up,
                        const std::optional<Tensor>& b_down, const std::string& activation, double alpha, double limit,
                        bool interleaved, bool transposed, const std::string& apply_weights, const std::string& save,
                        const std::optional<int64_t>& workspace_limit, const std::optional<int64_t>& max_rows)
      : Experts("fused_experts", place, given_x, w_gate_up, w_down, given_weights, b_gate_up, b_down, activation, alpha,
                limit, interleaved, transposed, apply_weights, max_rows) {
    const FusedExpertsProblem& p = problem;
    const int kept = checks.choice(save, "save", {"preact", "fp8", "none"});
    keep_preact = kept < 2;
    problem.preact_is_mxfp8 = kept == 1;
    check_mxfp8();
    checks.check(!p.w_gate_up.is_tiled || !keep_preact, "tiled weights serve inference: save must be none, got ", save);
    set_slab(workspace_limit);
    checks.has_dims(topk_ids, "topk_ids", 2, "[T, K]");
    const ScalarType id_dtype = topk_ids.scalar_type();
    checks.check(id_dtype == ScalarType::Int || id_dtype == ScalarType::Long, "topk_ids must be Int or Long, got ",
                 id_dtype);
    checks.has_size(topk_ids, "topk_ids", 0, p.num_tokens, "T");
    checks.has_size(topk_ids, "topk_ids", 1, p.top_k, "K");
    checks.check(p.num_experts < INT32_MAX, "w_down must have fewer than 2^31 - 1 experts");
    ids_are_int64 = id_dtype == ScalarType::Long;
    ids = torch::stable::contiguous(topk_ids);
    expert_offsets = empty_like(ids, {p.num_experts + 1}, ScalarType::Int);
    slot_to_row = empty_like(ids, {p.num_tokens, p.top_k}, ScalarType::Int);
    problem.expert_offsets = Checks::data<int32_t>(expert_offsets);
    problem.slot_to_row = Checks::data<int32_t>(slot_to_row);
    y = empty_like(x, {p.num_tokens, p.hidden_size}, x.scalar_type());
    preact =
        keep_preact ? empty_like(x, {num_rows(), preact_width()}, preact_dtype()) : empty_like(x, {0}, x.scalar_type());
  }

  void* preact_data() { return keep_preact ? preact.mutable_data_ptr() : nullptr; }
};

// grad_x, grad_w_gate_up, grad_w_down, grad_topk_weights, grad_b_gate_up, grad_b_down
using ExpertGradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

struct FusedExpertsBackwardArguments : Experts {
  FusedExpertsBackwardParams params = {};  // problem is filled in by the backend, when row_to_slot is there
  Tensor grad_y, expert_offsets, slot_to_row;
  std::optional<Tensor> kept_preact;
  ExpertGradients gradients;

  FusedExpertsBackwardArguments(Place place, const Tensor& given_grad_y, const Tensor& given_x, const Tensor& w_gate_up,
                                const Tensor& w_down, const Tensor& given_weights,
                                const std::optional<Tensor>& b_gate_up, const std::optional<Tensor>& b_down,
                                const Tensor& preact, const Tensor& offsets, const Tensor& slots,
                                const std::string& activation, double alpha, double limit, bool interleaved,
                                bool transposed, const std::string& apply_weights,
                                const std::optional<int64_t>& workspace_limit, bool x_grad, bool weight_grads,
                                bool routing_grad, const std::optional<int64_t>& max_rows,
                                Allocate allocate_weight_gradient = &empty_like)
      : Experts("fused_experts_backward", place, given_x, w_gate_up, w_down, given_weights, b_gate_up, b_down,
                activation, alpha, limit, interleaved, transposed, apply_weights, max_rows),
        // Results of an op must not share storage.
        gradients{nothing(), nothing(), nothing(), nothing(), nothing(), nothing()} {
    const FusedExpertsProblem& p = problem;
    checks.check(!p.w_gate_up.is_tiled, "tiled weights serve inference: there is no gradient");
    set_slab(workspace_limit);
    const ScalarType dtype = x.scalar_type();
    checks.has_dims(given_grad_y, "grad_y", 2, "[T, H]");
    checks.has_dtype(given_grad_y, "grad_y", dtype);
    checks.has_size(given_grad_y, "grad_y", 0, p.num_tokens, "T");
    checks.has_size(given_grad_y, "grad_y", 1, p.hidden_size, "H");
    grad_y = with_unit_inner_stride(given_grad_y);
    params.grad_y = grad_y.const_data_ptr();
    params.grad_y_stride = grad_y.stride(0);

    expert_offsets = checks.indices(offsets, "expert_offsets", 1, "[E + 1]");
    checks.has_size(expert_offsets, "expert_offsets", 0, p.num_experts + 1, "E + 1");
    slot_to_row = checks.indices(slots, "slot_to_row", 2, "[T, K]");
    checks.has_size(slot_to_row, "slot_to_row", 0, p.num_tokens, "T");
    checks.has_size(slot_to_row, "slot_to_row", 1, p.top_k, "K");
    problem.expert_offsets = Checks::data<int32_t>(expert_offsets);
    problem.slot_to_row = Checks::data<int32_t>(slot_to_row);

    if (preact.numel() > 0) {
      problem.preact_is_mxfp8 = preact.scalar_type() == ScalarType::Byte;
      check_mxfp8();
      checks.has_dims(preact, "preact", 2, "[R, G]");
      checks.has_dtype(preact, "preact", preact_dtype());
      checks.has_size(preact, "preact", 0, num_rows(), "R");
      checks.has_size(preact, "preact", 1, preact_width(), problem.preact_is_mxfp8 ? "the bytes of a row" : "G");
      kept_preact = torch::stable::contiguous(preact);
      params.preact = kept_preact->const_data_ptr();
    }

    auto& [grad_x, grad_w_gate_up, grad_w_down, grad_topk_weights, grad_b_gate_up, grad_b_down] = gradients;
    if (x_grad) {
      grad_x = empty_like(x, {p.num_tokens, p.hidden_size}, dtype);
      params.grad_x = grad_x.mutable_data_ptr();
    }
    if (weight_grads) {
      grad_w_gate_up = weight_gradient(w_gate_up, transposed, allocate_weight_gradient, params.grad_w_gate_up);
      grad_w_down = weight_gradient(w_down, transposed, allocate_weight_gradient, params.grad_w_down);
      if (b_gate_up) {
        grad_b_gate_up = empty_like(x, {p.num_experts, preact_size}, dtype);
        params.grad_b_gate_up = grad_b_gate_up.mutable_data_ptr();
      }
      if (b_down) {
        grad_b_down = empty_like(x, {p.num_experts, p.hidden_size}, dtype);
        params.grad_b_down = grad_b_down.mutable_data_ptr();
      }
    }
    if (routing_grad) {
      grad_topk_weights = empty_like(x, {p.num_tokens, p.top_k}, weights_dtype(p.dtype));
      params.grad_topk_weights = grad_topk_weights.mutable_data_ptr();
    }
  }

 private:
  Tensor nothing() const { return empty_like(x, {0}, x.scalar_type()); }

  // A contiguous gradient of a weight, and the view of it as [n, k].
  static Tensor weight_gradient(const Tensor& weight, bool transposed, Allocate allocate, ExpertMatrix& view) {
    Tensor grad = allocate(weight, {weight.size(0), weight.size(1), weight.size(2)}, weight.scalar_type());
    view = matrix(grad, transposed);
    return grad;
  }
};

}  // namespace moe::torch_ops
