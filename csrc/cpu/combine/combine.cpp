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
  if (params.num_experts < 0 || params.width < 0 || params.top_k < 0) return Status::kInvalidArgument;
  const KernelTable& table = kernels();
  const int32_t* offsets = params.expert_offsets;
  const int64_t rows = params.num_experts == 0 ? 0 : offsets[params.num_experts] - offsets[0];
  int64_t heaviest = 0;
  for (int64_t e = 0; e < params.num_experts; ++e) heaviest = std::max<int64_t>(heaviest, offsets[e + 1] - offsets[e]);
  // Experts are tasks, and threads take the next one when they are done. One that holds up the others is cut into
  // blocks of columns, and so are all, but no more than it takes: narrow blocks read little of each row at a time.
  constexpr int64_t kMinColumns = 256;
  const int64_t widest_cut = std::max<int64_t>((params.width + kMinColumns - 1) / kMinColumns, 1);
  const int64_t wanted = rows == 0 ? 1 : (2 * parallel.num_threads * heaviest + rows - 1) / rows;
  const bool is_small = rows * params.width < kElementsPerRange;
  const int64_t blocks = is_small || parallel.num_threads == 1 ? 1 : std::min(wanted, widest_cut);
  const auto sum = [&](int64_t task) {
    const int64_t block = task % blocks;
    table.segment_sum(params, task / blocks, params.width * block / blocks, params.width * (block + 1) / blocks);
  };
  if (is_small) {
    for (int64_t e = 0; e < params.num_experts; ++e) sum(e);
  } else {
    parallel.for_each(params.num_experts * blocks, sum);
  }
  return Status::kOk;
}

}  // namespace moe::cpu
