// The launchers of route: checks, and which kernel.
#include "cuda/route/route.h"

#include "cuda/route/backward.h"
#include "cuda/route/forward.h"

namespace moe::cuda {

namespace {

bool is_valid(int64_t num_tokens, int64_t num_experts, int64_t top_k) {
  return num_tokens >= 0 && num_experts >= 1 && num_experts < INT32_MAX && top_k >= 1;
}

bool is_valid(const RouteParams& p) {
  if (!is_valid(p.num_tokens, p.num_experts, p.top_k) || p.top_k > p.num_experts) return false;
  if (p.num_groups < 1 || p.num_experts % p.num_groups != 0 || p.topk_groups < 1 || p.topk_groups > p.num_groups ||
      p.group_top < 1) {
    return false;
  }
  return p.statistics.score_sums == nullptr || p.rule.score != Score::kNone;
}

}  // namespace

int64_t route_forward_workspace_bytes(const RouteParams& p) {
  if (!is_valid(p)) return 0;
  const routing::Chunks chunks = routing::chunks_of(p);
  return routing::partials_bytes(p, chunks) +
         (routing::fits_registers(p) ? 0 : routing::any_workspace_bytes(p, chunks));
}

Outcome route_forward(const RouteParams& params, void* workspace, Stream stream) {
  if (!is_valid(params)) return {Status::kInvalidArgument, 0, "route_forward"};
  const routing::Chunks chunks = routing::chunks_of(params);
  RouteParams p = params;
  p.statistics = routing::partials_in(params, chunks, workspace);
  void* keys = static_cast<char*>(workspace) + routing::partials_bytes(params, chunks);
  const Outcome outcome = routing::fits_registers(p) ? routing::forward_in_registers(p, chunks, stream)
                                                     : routing::forward_any(p, chunks, keys, stream);
  if (!outcome.ok()) return outcome;
  return routing::sum_partials(params, chunks, p.statistics, stream);
}

Outcome route_backward(const RouteBackwardParams& p, Stream stream) {
  if (!is_valid(p.num_tokens, p.num_experts, p.top_k)) return {Status::kInvalidArgument, 0, "route_backward"};
  if (p.grad_score_sums != nullptr && p.rule.score == Score::kNone) {
    return {Status::kInvalidArgument, 0, "route_backward"};
  }
  return routing::fits_registers(p) ? routing::backward_in_registers(p, stream) : routing::backward_any(p, stream);
}

}  // namespace moe::cuda
