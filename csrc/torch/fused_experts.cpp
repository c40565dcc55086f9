// fused_experts and its backward for CPU tensors. Contract: moe/fused_experts.h and schema.cpp.
#include "cpu/fused_experts/fused_experts.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "cpu/permute/permute.h"
#include "torch/allocate.h"
#include "torch/checks.h"

namespace moe::torch_ops {

namespace {

// A slab is never narrower: below this a product reads its rows too often.
constexpr int64_t kNarrowestSlab = 64;

Activation activation_named(const Checks& checks, const std::string& name) {
  return static_cast<Activation>(checks.choice(
      name, "activation",
      {"swiglu", "geglu", "geglu_tanh", "reglu", "clamped_swiglu", "silu", "gelu", "gelu_tanh", "relu", "relu2"}));
}

// The arguments that forward and backward share, checked; keeps contiguous copies alive where one was needed.
struct Experts {
  Checks checks;
  Tensor x, topk_weights;
  std::optional<Tensor> distinct_w_gate_up;
  FusedExpertsProblem problem = {};
  int64_t preact_size = 0;

  Experts(const char* op, const Tensor& given_x, const Tensor& w_gate_up, const Tensor& w_down,
          const Tensor& given_weights, const std::optional<Tensor>& b_gate_up, const std::optional<Tensor>& b_down,
          const std::string& activation, double alpha, double limit, bool interleaved, bool transposed,
          const std::string& apply_weights)
      : checks(op), x(given_x), topk_weights(given_weights) {
    FusedExpertsProblem& p = problem;
    checks.has_dims(x, "x", 2, "[T, H]");
    x = with_unit_inner_stride(x);
    p.dtype = checks.data_dtype(x, "x");
    p.num_tokens = x.size(0);
    p.hidden_size = x.size(1);
    checks.has_dims(w_gate_up, "w_gate_up", 3, transposed ? "[E, H, G]" : "[E, G, H]");
    checks.has_dims(w_down, "w_down", 3, transposed ? "[E, I, H]" : "[E, H, I]");
    checks.has_dtype(w_gate_up, "w_gate_up", x.scalar_type());
    checks.has_dtype(w_down, "w_down", x.scalar_type());
    p.num_experts = w_down.size(0);
    checks.check(p.num_experts >= 1, "w_down must have at least one expert, got ", shape_text(w_down));
    p.intermediate_size = w_down.size(transposed ? 1 : 2);
    p.activation = {activation_named(checks, activation), alpha, limit};
    preact_size = is_gated(p.activation.kind) ? 2 * p.intermediate_size : p.intermediate_size;
    checks.has_size(w_down, "w_down", transposed ? 2 : 1, p.hidden_size, "H");
    checks.has_size(w_gate_up, "w_gate_up", 0, p.num_experts, "E");
    checks.has_size(w_gate_up, "w_gate_up", transposed ? 1 : 2, p.hidden_size, "H");
    checks.has_size(w_gate_up, "w_gate_up", transposed ? 2 : 1, preact_size, "G");
    p.interleaved = interleaved;
    p.weights_on_input = checks.choice(apply_weights, "apply_weights", {"output", "input"}) == 1;
    p.x = x.const_data_ptr();
    p.x_stride = x.stride(0);
    p.w_gate_up = matrix(w_gate_up, transposed);
    if (is_gated(p.activation.kind) && p.w_gate_up.n_stride == 0 && preact_size > 0) {
      // Expanded along G: a kernel tells gate from up by how far apart they lie.
      distinct_w_gate_up = torch::stable::contiguous(w_gate_up);
      p.w_gate_up = matrix(*distinct_w_gate_up, transposed);
    }
    p.w_down = matrix(w_down, transposed);
    p.b_gate_up = bias(b_gate_up, "b_gate_up", preact_size);
    p.b_down = bias(b_down, "b_down", p.hidden_size);
    checks.has_dims(topk_weights, "topk_weights", 2, "[T, K]");
    p.top_k = topk_weights.size(1);
    topk_weights = checks.routing_weights(topk_weights, "topk_weights", p.dtype, p.num_tokens, p.top_k);
    p.topk_weights = topk_weights.const_data_ptr();
    checks.check(p.num_tokens * p.top_k < INT32_MAX, "T * K must be below 2^31 - 1, got ", p.num_tokens, " * ",
                 p.top_k);
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

  int64_t num_rows() const { return problem.num_tokens * problem.top_k; }

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

  void set_routing(const Tensor& offsets, const std::vector<int32_t>& row_to_slot, const Tensor& slot_to_row) {
    problem.expert_offsets = Checks::data<int32_t>(offsets);
    problem.row_to_slot = row_to_slot.data();
    problem.slot_to_row = Checks::data<int32_t>(slot_to_row);
  }
};

using Outputs = std::tuple<Tensor, Tensor, Tensor, Tensor>;

Outputs fused_experts(const Tensor& x, const Tensor& w_gate_up, const Tensor& w_down, const Tensor& topk_weights,
                      const Tensor& topk_ids, const std::optional<Tensor>& b_gate_up,
                      const std::optional<Tensor>& b_down, const std::string& activation, double alpha, double limit,
                      bool interleaved, bool transposed, const std::string& apply_weights, const std::string& save,
                      std::optional<int64_t> workspace_limit, bool /*deterministic: this backend always is*/) {
  Experts experts("fused_experts", x, w_gate_up, w_down, topk_weights, b_gate_up, b_down, activation, alpha, limit,
                  interleaved, transposed, apply_weights);
  const Checks& checks = experts.checks;
  FusedExpertsProblem& p = experts.problem;
  const bool keep_preact = checks.choice(save, "save", {"preact", "none"}) == 0;
  experts.set_slab(workspace_limit);

  checks.has_dims(topk_ids, "topk_ids", 2, "[T, K]");
  const ScalarType id_dtype = topk_ids.scalar_type();
  checks.check(id_dtype == ScalarType::Int || id_dtype == ScalarType::Long, "topk_ids must be Int or Long, got ",
               id_dtype);
  checks.has_size(topk_ids, "topk_ids", 0, p.num_tokens, "T");
  checks.has_size(topk_ids, "topk_ids", 1, p.top_k, "K");
  checks.check(p.num_experts < INT32_MAX, "w_down must have fewer than 2^31 - 1 experts");
  const Tensor ids = torch::stable::contiguous(topk_ids);
  Tensor offsets = empty_like(ids, {p.num_experts + 1}, ScalarType::Int);
  std::vector<int32_t> row_to_slot(experts.num_rows());
  Tensor slot_to_row = empty_like(ids, {p.num_tokens, p.top_k}, ScalarType::Int);
  const cpu::Parallel parallel = torch_threads();
  checks.is_ok(cpu::permute({.num_tokens = p.num_tokens,
                             .top_k = p.top_k,
                             .num_experts = p.num_experts,
                             .topk_ids = ids.const_data_ptr(),
                             .ids_are_int64 = id_dtype == ScalarType::Long,
                             .expert_offsets = static_cast<int32_t*>(offsets.mutable_data_ptr()),
                             .row_to_slot = row_to_slot.data(),
                             .slot_to_row = static_cast<int32_t*>(slot_to_row.mutable_data_ptr())},
                            parallel));
  experts.set_routing(offsets, row_to_slot, slot_to_row);

  const ScalarType dtype = x.scalar_type();
  Tensor y = allocate(x, {p.num_tokens, p.hidden_size}, dtype);
  Tensor preact =
      keep_preact ? allocate(x, {experts.num_rows(), experts.preact_size}, dtype) : empty_like(x, {0}, dtype);
  if (keep_preact) {
    const int64_t used = Checks::data<int32_t>(offsets)[p.num_experts];
    const int64_t row_bytes = experts.preact_size * size_of(p.dtype);
    std::memset(static_cast<char*>(preact.mutable_data_ptr()) + used * row_bytes, 0,
                (experts.num_rows() - used) * row_bytes);
  }
  checks.is_ok(cpu::fused_experts(
      {.problem = p, .preact = keep_preact ? preact.mutable_data_ptr() : nullptr, .y = y.mutable_data_ptr()},
      parallel));
  return {y, preact, offsets, slot_to_row};
}

// A contiguous gradient of a weight, and the view of it as [n, k].
Tensor weight_gradient(const Tensor& weight, bool transposed, ExpertMatrix& view) {
  Tensor grad = allocate(weight, {weight.size(0), weight.size(1), weight.size(2)}, weight.scalar_type());
  view = Experts::matrix(grad, transposed);
  return grad;
}

// The inverse of slot_to_row, which is cheaper to make again than to keep. Every row below expert_offsets[E] must have
// exactly one slot.
std::vector<int32_t> slots_of_rows(const Checks& checks, const Tensor& offsets, const Tensor& slot_to_row) {
  const int32_t* row_of = Checks::data<int32_t>(slot_to_row);
  const int32_t* bounds = Checks::data<int32_t>(offsets);
  const int64_t num_valid = bounds[offsets.numel() - 1];
  checks.check(bounds[0] == 0, "expert_offsets must begin at 0, got ", bounds[0]);
  checks.rows_exist(slot_to_row, "slot_to_row", num_valid);
  std::vector<int32_t> slot_of(slot_to_row.numel(), -1);
  for (int64_t slot = 0; slot < slot_to_row.numel(); ++slot) {
    if (row_of[slot] < 0) continue;
    checks.check(slot_of[row_of[slot]] < 0, "slot_to_row names row ", row_of[slot], " more than once");
    slot_of[row_of[slot]] = static_cast<int32_t>(slot);
  }
  for (int64_t row = 0; row < num_valid; ++row) {
    checks.check(slot_of[row] >= 0, "slot_to_row names no slot for row ", row, " of ", num_valid);
  }
  return slot_of;
}

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Gradients fused_experts_backward(const Tensor& grad_y, const Tensor& x, const Tensor& w_gate_up, const Tensor& w_down,
                                 const Tensor& topk_weights, const std::optional<Tensor>& b_gate_up,
                                 const std::optional<Tensor>& b_down, const Tensor& preact,
                                 const Tensor& expert_offsets, const Tensor& slot_to_row, const std::string& activation,
                                 double alpha, double limit, bool interleaved, bool transposed,
                                 const std::string& apply_weights, std::optional<int64_t> workspace_limit,
                                 bool /*deterministic: this backend always is*/, bool x_grad, bool weight_grads,
                                 bool routing_grad) {
  Experts experts("fused_experts_backward", x, w_gate_up, w_down, topk_weights, b_gate_up, b_down, activation, alpha,
                  limit, interleaved, transposed, apply_weights);
  const Checks& checks = experts.checks;
  FusedExpertsProblem& p = experts.problem;
  experts.set_slab(workspace_limit);
  const ScalarType dtype = x.scalar_type();

  checks.has_dims(grad_y, "grad_y", 2, "[T, H]");
  checks.has_dtype(grad_y, "grad_y", dtype);
  checks.has_size(grad_y, "grad_y", 0, p.num_tokens, "T");
  checks.has_size(grad_y, "grad_y", 1, p.hidden_size, "H");
  const Tensor grad = with_unit_inner_stride(grad_y);

  const Tensor offsets = checks.indices(expert_offsets, "expert_offsets", 1, "[E + 1]");
  checks.has_size(offsets, "expert_offsets", 0, p.num_experts + 1, "E + 1");
  checks.offsets_fit(offsets, "expert_offsets", experts.num_rows());
  const Tensor slots = checks.indices(slot_to_row, "slot_to_row", 2, "[T, K]");
  checks.has_size(slots, "slot_to_row", 0, p.num_tokens, "T");
  checks.has_size(slots, "slot_to_row", 1, p.top_k, "K");
  const std::vector<int32_t> row_to_slot = slots_of_rows(checks, offsets, slots);
  experts.set_routing(offsets, row_to_slot, slots);

  std::optional<Tensor> kept;
  if (preact.numel() > 0) {
    checks.has_dims(preact, "preact", 2, "[R, G]");
    checks.has_dtype(preact, "preact", dtype);
    checks.has_size(preact, "preact", 0, experts.num_rows(), "R");
    checks.has_size(preact, "preact", 1, experts.preact_size, "G");
    kept = torch::stable::contiguous(preact);
  }

  const auto nothing = [&] { return empty_like(x, {0}, dtype); };  // results of an op must not share storage
  FusedExpertsBackwardParams params = {};
  params.problem = p;
  params.preact = kept ? kept->const_data_ptr() : nullptr;
  params.grad_y = grad.const_data_ptr();
  params.grad_y_stride = grad.stride(0);
  Gradients gradients = {nothing(), nothing(), nothing(), nothing(), nothing(), nothing()};
  auto& [grad_x, grad_w_gate_up, grad_w_down, grad_topk_weights, grad_b_gate_up, grad_b_down] = gradients;
  if (x_grad) {
    grad_x = allocate(x, {p.num_tokens, p.hidden_size}, dtype);
    params.grad_x = grad_x.mutable_data_ptr();
  }
  if (weight_grads) {
    grad_w_gate_up = weight_gradient(w_gate_up, transposed, params.grad_w_gate_up);
    grad_w_down = weight_gradient(w_down, transposed, params.grad_w_down);
    if (b_gate_up) {
      grad_b_gate_up = allocate(x, {p.num_experts, experts.preact_size}, dtype);
      params.grad_b_gate_up = grad_b_gate_up.mutable_data_ptr();
    }
    if (b_down) {
      grad_b_down = allocate(x, {p.num_experts, p.hidden_size}, dtype);
      params.grad_b_down = grad_b_down.mutable_data_ptr();
    }
  }
  if (routing_grad) {
    grad_topk_weights = allocate(x, {p.num_tokens, p.top_k}, weights_dtype(p.dtype));
    params.grad_topk_weights = grad_topk_weights.mutable_data_ptr();
  }
  checks.is_ok(cpu::fused_experts_backward(params, torch_threads()));
  return gradients;
}

}  // namespace

}  // namespace moe::torch_ops

STABLE_TORCH_LIBRARY_IMPL(moe_ext, CPU, m) {
  m.impl("fused_experts", TORCH_BOX(&moe::torch_ops::fused_experts));
  m.impl("fused_experts_backward", TORCH_BOX(&moe::torch_ops::fused_experts_backward));
}
