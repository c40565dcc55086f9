#include "cpu/combine/combine.h"

#include <algorithm>

#include "cpu/isa.h"

namespace moe::cpu {

namespace {

// A range with fewer elements to add costs less than handing it to another thread.
constexpr int64_t kElementsPerRange = 65536;

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
  // Experts differ in size, so tasks are blocks of an expert's columns, and threads take the next one when they are
  // done. Narrower than this, a block would read too little of each row at a time.
  constexpr int64_t kMinColumns = 256, kMaxBlocks = 8;
  const int64_t wide_enough = (params.width + kMinColumns - 1) / kMinColumns;
  const int64_t blocks = parallel.num_threads == 1 || wide_enough < 1 ? 1 : std::min(wide_enough, kMaxBlocks);
  const int64_t rows =
      params.num_experts == 0 ? 0 : params.expert_offsets[params.num_experts] - params.expert_offsets[0];
  const auto sum = [&](int64_t expert, int64_t block) {
    table.segment_sum(params, expert, params.width * block / blocks, params.width * (block + 1) / blocks);
  };
  if (rows * params.width < kElementsPerRange) {
    for (int64_t e = 0; e < params.num_experts; ++e) table.segment_sum(params, e, 0, params.width);
  } else {
    parallel.for_each(params.num_experts * blocks, [&](int64_t task) { sum(task / blocks, task % blocks); });
  }
  return Status::kOk;
}

}  // namespace moe::cpu
