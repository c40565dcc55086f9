#include "cpu/route/route.h"

#include <atomic>

#include "cpu/isa.h"

namespace moe::cpu {

namespace {

// A range smaller than this many experts in all costs less than handing it to another thread.
constexpr int64_t kExpertsPerRange = 4096;

int64_t tokens_per_range(int64_t num_experts) { return (kExpertsPerRange + num_experts - 1) / num_experts; }

bool is_valid(int64_t num_tokens, int64_t num_experts, int64_t top_k) {
  return num_tokens >= 0 && num_experts >= 1 && top_k >= 1;
}

}  // namespace

Status route_forward(const RouteParams& params, const Parallel& parallel, int64_t* bad_token) {
  *bad_token = -1;
  if (!is_valid(params.num_tokens, params.num_experts, params.top_k) || params.top_k > params.num_experts) {
    return Status::kInvalidArgument;
  }
  std::atomic<int64_t> first_bad{params.num_tokens};
  std::atomic<bool> out_of_memory{false};
  const KernelTable& table = kernels();
  parallel.for_ranges(params.num_tokens, tokens_per_range(params.num_experts), [&](int64_t begin, int64_t end) {
    const int64_t result = table.route_forward(params, begin, end);
    if (result < -1) out_of_memory = true;
    if (result < 0) return;
    int64_t seen = first_bad;
    while (result < seen && !first_bad.compare_exchange_weak(seen, result)) {
    }
  });
  if (out_of_memory) return Status::kUnsupported;
  if (first_bad == params.num_tokens) return Status::kOk;
  *bad_token = first_bad;
  return Status::kInvalidArgument;
}

Status route_backward(const RouteBackwardParams& params, const Parallel& parallel) {
  if (!is_valid(params.num_tokens, params.num_experts, params.top_k)) return Status::kInvalidArgument;
  const KernelTable& table = kernels();
  parallel.for_ranges(params.num_tokens, tokens_per_range(params.num_experts),
                      [&](int64_t begin, int64_t end) { table.route_backward(params, begin, end); });
  return Status::kOk;
}

}  // namespace moe::cpu
