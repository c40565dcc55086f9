// Which products soft_mix and its gradients are, and which engine multiplies.
#include "cuda/soft/soft.h"

#include "cuda/soft/products.h"

namespace moe::cuda {

namespace {

constexpr Outcome kInvalid = {Status::kInvalidArgument, 0, "soft_mix"};

bool is_valid(const SoftMixParams& p) {
  const auto is_size = [](int64_t size) { return size >= 0 && size < INT32_MAX; };
  return is_size(p.batch) && is_size(p.num_tokens) && is_size(p.num_slots) && is_size(p.width) &&
         (p.dtype == DType::kFloat64) == (p.logits_dtype == DType::kFloat64);
}

SoftRows values_of(const SoftMixParams& p) { return {p.values, p.values_batch_stride, p.values_stride}; }
SoftRows gradients_of(const SoftMixBackwardParams& p) {
  return {p.grad_mixed, p.grad_mixed_batch_stride, p.grad_mixed_stride};
}

Outcome multiply(const SoftProduct& product, const Device& device, Stream stream) {
  const SoftMixParams& p = product.mix;
  if (!mma::fits(p, product.right, {product.out, 0, p.width})) return simt::soft_product(product, stream);
  return p.dtype == DType::kBFloat16 ? mma::soft_product_bfloat16(product, device, stream)
                                     : mma::soft_product_float16(product, device, stream);
}

}  // namespace

bool mma::fits(const SoftMixParams& p, const SoftRows& left, const SoftRows& right) {
  return size_of(p.dtype) == 2 && in_pieces(left, p.dtype, p.width, 16) && in_pieces(right, p.dtype, p.width, 16);
}

Outcome soft_mix(const SoftMixParams& p, const Device& device, Stream stream) {
  if (!is_valid(p)) return kInvalid;
  const Outcome outcome = soft_statistics(p, stream);
  return outcome.ok() ? multiply({p, p.dispatch, values_of(p), p.mixed}, device, stream) : outcome;
}

int64_t soft_mix_backward_workspace_bytes(const SoftMixBackwardParams& p) {
  if (!is_valid(p.forward) || p.grad_logits == nullptr) return 0;
  return p.forward.batch * p.forward.num_results() * (p.forward.dtype == DType::kFloat64 ? 8 : 4);
}

Outcome soft_mix_backward(const SoftMixBackwardParams& p, void* workspace, const Device& device, Stream stream) {
  const SoftMixParams& f = p.forward;
  if (!is_valid(f)) return kInvalid;
  Outcome outcome;
  if (p.grad_values != nullptr) {
    outcome = multiply({f, !f.dispatch, gradients_of(p), p.grad_values}, device, stream);
  }
  if (!outcome.ok() || p.grad_logits == nullptr) return outcome;
  outcome = soft_dots(p, workspace, stream);
  if (!outcome.ok()) return outcome;
  const SoftRows of_results = gradients_of(p), of_values = values_of(f);
  const SoftLogits logits = {f, f.dispatch ? of_values : of_results, f.dispatch ? of_results : of_values, workspace,
                             p.grad_logits};
  return mma::fits(f, logits.tokens, logits.slots) ? mma::soft_logits(logits, device, stream)
                                                   : simt::soft_logits(logits, stream);
}

}  // namespace moe::cuda
