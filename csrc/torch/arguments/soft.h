// The arguments of soft_mix and soft_mix_backward, checked, and their results, allocated.
#pragma once

#include <optional>
#include <vector>

#include "moe/soft.h"
#include "torch/checks.h"

namespace moe::torch_ops {

// Holds every tensor that params points into but the results.
struct SoftMixInputs {
  SoftMixParams params = {};
  Tensor values, logits;
  std::optional<Tensor> mask;

  SoftMixInputs(const Checks& checks, const Tensor& given_values, const Tensor& given_logits,
                const std::optional<Tensor>& token_mask, bool dispatch)
      : values(given_values), logits(given_logits) {
    SoftMixParams& p = params;
    checks.has_dims(values, "values", 3, "[B, N, D]");
    checks.has_dims(logits, "logits", 3, "[B, m, s]");
    p.dtype = checks.data_dtype(values, "values");
    p.logits_dtype = checks.data_dtype(logits, "logits");
    checks.check((p.dtype == DType::kFloat64) == (p.logits_dtype == DType::kFloat64),
                 "logits must be Double where values are, and else not, got ", logits.scalar_type(), " and ",
                 values.scalar_type());
    p.dispatch = dispatch;
    p.batch = logits.size(0);
    p.num_tokens = logits.size(1);
    p.num_slots = logits.size(2);
    p.width = values.size(2);
    checks.has_size(values, "values", 0, p.batch, "B");
    checks.has_size(values, "values", 1, p.num_values(), dispatch ? "m" : "s");
    if (token_mask) {
      checks.has_dims(*token_mask, "token_mask", 2, "[B, m]");
      checks.has_size(*token_mask, "token_mask", 0, p.batch, "B");
      checks.has_size(*token_mask, "token_mask", 1, p.num_tokens, "m");
      checks.has_dtype(*token_mask, "token_mask", ScalarType::Bool);
      mask = torch::stable::contiguous(*token_mask);
      p.token_mask = static_cast<const uint8_t*>(mask->const_data_ptr());
    }
    values = with_unit_inner_stride(values);
    logits = with_unit_inner_stride(logits);
    p.values = values.const_data_ptr();
    p.values_batch_stride = values.stride(0);
    p.values_stride = values.stride(1);
    p.logits = logits.const_data_ptr();
    p.logits_batch_stride = logits.stride(0);
    p.logits_stride = logits.stride(1);
  }
};

struct SoftMixArguments : SoftMixInputs {
  Tensor mixed, statistics;

  SoftMixArguments(const Checks& checks, const Tensor& given_values, const Tensor& given_logits,
                   const std::optional<Tensor>& token_mask, bool dispatch)
      : SoftMixInputs(checks, given_values, given_logits, token_mask, dispatch) {
    SoftMixParams& p = params;
    mixed = empty_like(values, {p.batch, p.num_results(), p.width}, values.scalar_type());
    statistics = empty_like(values, {2, p.batch, p.num_results()}, weights_dtype(p.dtype));
    p.mixed = mixed.mutable_data_ptr();
    p.statistics = statistics.mutable_data_ptr();
  }
};

struct SoftMixBackwardArguments : SoftMixInputs {
  SoftMixBackwardParams backward = {};
  Tensor grad_mixed, mixed, statistics, grad_values, grad_logits;

  SoftMixBackwardArguments(const Checks& checks, const Tensor& given_grad, const Tensor& given_values,
                           const Tensor& given_logits, const std::optional<Tensor>& token_mask,
                           const Tensor& given_mixed, const Tensor& given_statistics, bool dispatch, bool values_grad,
                           bool logits_grad)
      : SoftMixInputs(checks, given_values, given_logits, token_mask, dispatch) {
    const auto is_like_mixed = [&](const Tensor& tensor, const char* name) {
      checks.has_dims(tensor, name, 3, "[B, R, D]");
      checks.has_dtype(tensor, name, values.scalar_type());
      checks.has_size(tensor, name, 0, params.batch, "B");
      checks.has_size(tensor, name, 1, params.num_results(), dispatch ? "s" : "m");
      checks.has_size(tensor, name, 2, params.width, "D");
    };
    is_like_mixed(given_grad, "grad_mixed");
    is_like_mixed(given_mixed, "mixed");
    checks.has_dims(given_statistics, "statistics", 3, "[2, B, R]");
    checks.has_dtype(given_statistics, "statistics", weights_dtype(params.dtype));
    checks.has_size(given_statistics, "statistics", 0, 2, "max and scale");
    checks.has_size(given_statistics, "statistics", 1, params.batch, "B");
    checks.has_size(given_statistics, "statistics", 2, params.num_results(), dispatch ? "s" : "m");
    grad_mixed = with_unit_inner_stride(given_grad);
    mixed = torch::stable::contiguous(given_mixed);
    statistics = torch::stable::contiguous(given_statistics);
    // What nobody asked for is an empty tensor and a null pointer.
    grad_values = empty_like(values, of_size(values_grad, params.num_values(), params.width), values.scalar_type());
    grad_logits = empty_like(logits, of_size(logits_grad, params.num_tokens, params.num_slots), logits.scalar_type());
    SoftMixBackwardParams& p = backward;
    p.forward = params;
    p.forward.mixed = const_cast<void*>(mixed.const_data_ptr());
    p.forward.statistics = const_cast<void*>(statistics.const_data_ptr());
    p.grad_mixed = grad_mixed.const_data_ptr();
    p.grad_mixed_batch_stride = grad_mixed.stride(0);
    p.grad_mixed_stride = grad_mixed.stride(1);
    p.grad_values = values_grad ? grad_values.mutable_data_ptr() : nullptr;
    p.grad_logits = logits_grad ? grad_logits.mutable_data_ptr() : nullptr;
  }

 private:
  std::vector<int64_t> of_size(bool wanted, int64_t rows, int64_t columns) const {
    return wanted ? std::vector<int64_t>{params.batch, rows, columns} : std::vector<int64_t>{0};
  }
};

}  // namespace moe::torch_ops
