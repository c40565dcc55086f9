#include "cpu/combine/combine.h"

#include "cpu/isa.h"

namespace moe::cpu {

namespace {

// A range with fewer elements to add costs less than handing it to another thread.
constexpr int64_t kElementsPerRange = 16384;

int64_t grain(int64_t elements_each) {
  return elements_each < 1 ? kElementsPerRange : (kElementsPerRange + elements_each - 1) / elements_each;
}

}  // namespace

Status combine_forward(const CombineParams& params, const Parallel& parallel) {
  if (params.num_tokens < 0 || params.top_k < 0 || params.hidden_size < 0) return Status::kInvalidArgument;
  const KernelTable& table = kernels();
  parallel.for_ranges(params.num_tokens, grain(params.top_k * params.hidden_size),
                      [&](int64_t begin, int64_t end) { table.combine_forward(params, begin, end); });
  return Status::kOk;
}

Status combine_backward(const CombineBackwardParams& params, const Parallel& parallel) {
  if (params.num_tokens < 0 || params.top_k < 0 || params.hidden_size < 0) return Status::kInvalidArgument;
  const KernelTable& table = kernels();
  parallel.for_ranges(params.num_tokens, grain(params.top_k * params.hidden_size),
                      [&](int64_t begin, int64_t end) { table.combine_backward(params, begin, end); });
  return Status::kOk;
}

Status segment_sum(const SegmentSumParams& params, const Parallel& parallel) {
  if (params.num_experts < 0 || params.width < 0 || params.top_k < 1) return Status::kInvalidArgument;
  const KernelTable& table = kernels();
  // Experts differ in size, so each is a task of its own and threads take the next one when they are done.
  parallel.for_each(params.num_experts, [&](int64_t e) { table.segment_sum(params, e, e + 1); });
  return Status::kOk;
}

}  // namespace moe::cpu
