// The experts with int8 weights: quantise the tokens, first product and activation, quantise that, second product,
// combine. Products are cut into jobs that threads take one by one; which thread takes which changes no result.
#include "cpu/int8/fused_experts_int8.h"

#include <algorithm>
#include <atomic>
#include <vector>

#include "cpu/int8/choice.h"
#include "cpu/isa.h"
#include "cpu/scratch.h"

namespace moe::cpu {

namespace {

// Packed rows of a job stay within this, so that they and a panel of the weight fit the L2 cache.
constexpr int64_t kPackedBytes = int64_t{512} << 10;
constexpr int64_t kMostRows = 256, kFewestRows = 64;
// Below so many rows reading the weight takes longer than multiplying it.
constexpr int64_t kRowsOfAWeightRead = 64;
// Enough jobs that the last ones to finish do not leave threads waiting long.
constexpr int64_t kJobsPerThread = 6;
// A range with fewer elements to look at costs less than handing it to another thread.
constexpr int64_t kElementsPerRange = 16384;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t round_up(int64_t value, int64_t multiple) { return ceil_div(value, multiple) * multiple; }
int64_t grain(int64_t elements_each) { return ceil_div(kElementsPerRange, std::max<int64_t>(elements_each, 1)); }

struct RowsOfExperts {
  int64_t num_experts;
  const int32_t* offsets;

  int64_t rows(int64_t expert) const { return offsets[expert + 1] - offsets[expert]; }
};

// Rows of an expert in equal blocks, for the weight is read once for each; columns cut where a block would be too large
// a part of the whole for the threads to finish together.
std::vector<Int8Job> cut(const RowsOfExperts& experts, int64_t columns, int64_t k, int num_threads) {
  if (columns == 0) return {};
  const int64_t most = std::clamp(kPackedBytes / std::max<int64_t>(k, 1) / 32 * 32, kFewestRows, kMostRows);
  const auto blocks = [&](int64_t rows) { return ceil_div(rows, most); };
  const auto cost = [](int64_t rows) { return std::max(rows, kRowsOfAWeightRead); };
  const auto for_each_block = [&](const auto& body) {
    for (int64_t e = 0; e < experts.num_experts; ++e) {
      const int64_t rows = experts.rows(e);
      if (rows == 0) continue;
      const int64_t step = round_up(ceil_div(rows, blocks(rows)), 16);
      for (int64_t i = 0; i < rows; i += step) body(e, experts.offsets[e] + i, std::min(step, rows - i));
    }
  };
  int64_t total = 0;
  for_each_block([&](int64_t, int64_t, int64_t rows) { total += cost(rows); });
  const int64_t share = num_threads > 1 ? std::max<int64_t>(total / (kJobsPerThread * num_threads), 1) : total;
  std::vector<Int8Job> jobs;
  for_each_block([&](int64_t e, int64_t row0, int64_t rows) {
    const int64_t cuts = std::clamp<int64_t>(ceil_div(cost(rows), share), 1, ceil_div(columns, 2 * kInt8ColumnStep));
    const int64_t step = round_up(ceil_div(columns, cuts), kInt8ColumnStep);
    for (int64_t j = 0; j < columns; j += step) jobs.push_back({e, row0, rows, j, std::min(step, columns - j)});
  });
  return jobs;
}

Status run(const Int8Product& product, const std::vector<Int8Job>& jobs, const Parallel& parallel) {
  const Int8Kernels& kernels = int8_kernels();
  const int64_t count = static_cast<int64_t>(jobs.size());
  int64_t scratch_bytes = 0;
  for (const Int8Job& job : jobs) scratch_bytes = std::max(scratch_bytes, kernels.scratch_bytes(job.rows, product.k));
  std::atomic<int64_t> next_job = 0;
  std::atomic<bool> out_of_memory = false;
  parallel.for_each(std::min<int64_t>(parallel.num_threads, count), [&](int64_t) {
    void* scratch = thread_scratch(scratch_bytes);
    if (!scratch) {
      out_of_memory = true;
      return;
    }
    for (int64_t at = next_job++; at < count; at = next_job++) {
      // A guess: another thread may be quicker. Taking it already would leave that one without work in the end.
      const int64_t after = next_job.load(std::memory_order_relaxed);
      kernels.run(product, jobs[at], after < count ? &jobs[after] : nullptr, scratch);
    }
  });
  return out_of_memory ? Status::kOutOfMemory : Status::kOk;
}

// Buffers one after the other in one block, each 64-byte aligned.
class Buffers {
 public:
  int64_t add(int64_t bytes) {
    const int64_t at = bytes_;
    bytes_ += round_up(bytes, 64);
    return at;
  }
  int64_t bytes() const { return bytes_; }

 private:
  int64_t bytes_ = 0;
};

}  // namespace

void quantize_int8(const Int8QuantizeParams& params, int64_t rows, const Parallel& parallel) {
  const Int8Kernels& kernels = int8_kernels();
  parallel.for_ranges(rows, grain(params.columns),
                      [&](int64_t begin, int64_t end) { kernels.quantize(params, begin, end); });
}

Status fused_experts_int8(const FusedExpertsInt8Params& p, const Parallel& parallel) {
  const int64_t rows = p.expert_offsets[p.num_experts];
  const bool gated = is_gated(p.activation.kind);
  const int64_t gate_up_size = (gated ? 2 : 1) * p.intermediate_size;
  const int64_t x_stride = round_up(p.hidden_size, kInt8RowMultiple);
  const int64_t act_stride = round_up(p.intermediate_size, kInt8RowMultiple);
  // The activations end where the rows of the output begin.
  const int64_t act_bytes = rows * p.intermediate_size * static_cast<int64_t>(sizeof(float));
  Buffers buffers;
  const int64_t x_at = buffers.add(p.num_tokens * x_stride), act_at = buffers.add(rows * act_stride);
  const int64_t x_scales_at = buffers.add(p.num_tokens * static_cast<int64_t>(sizeof(float)));
  const int64_t act_scales_at = buffers.add(rows * static_cast<int64_t>(sizeof(float)));
  const int64_t rows_at = buffers.add(std::max(act_bytes, rows * p.hidden_size * size_of(p.dtype)));
  Workspace workspace(buffers.bytes() + 64);
  if (!workspace.data()) return Status::kOutOfMemory;
  char* base = static_cast<char*>(workspace.data());
  const auto int8_at = [&](int64_t at) { return reinterpret_cast<int8_t*>(base + at); };
  const auto float_at = [&](int64_t at) { return reinterpret_cast<float*>(base + at); };

  const RowsOfExperts experts = {p.num_experts, p.expert_offsets};
  if (rows > 0) {
    quantize_int8({p.dtype, p.x, p.x_stride, p.hidden_size, int8_at(x_at), x_stride, float_at(x_scales_at)},
                  p.num_tokens, parallel);
    Int8Product up = {.k = p.hidden_size,
                      .rows = int8_at(x_at),
                      .row_stride = x_stride,
                      .row_scales = float_at(x_scales_at),
                      .row_to_slot = p.row_to_slot,
                      .slots_per_row = p.top_k,
                      .slot_weights = p.weights_on_input ? p.topk_weights : nullptr,
                      .weight = p.w_gate_up,
                      .scales_expert_stride = gate_up_size,
                      .dtype = p.dtype,
                      .bias = p.b_gate_up,
                      .activates = true,
                      .activation = p.activation,
                      .gate_step = gated && p.interleaved ? 2 : 1,
                      .up_offset = !gated          ? 0
                                   : p.interleaved ? 1
                                                   : p.intermediate_size,
                      .out = float_at(rows_at),
                      .out_stride = p.intermediate_size};
    Status status = run(up, cut(experts, p.intermediate_size, up.k, parallel.num_threads), parallel);
    if (status != Status::kOk) return status;

    quantize_int8({DType::kFloat32, float_at(rows_at), p.intermediate_size, p.intermediate_size, int8_at(act_at),
                   act_stride, float_at(act_scales_at)},
                  rows, parallel);
    Int8Product down = {.k = p.intermediate_size,
                        .rows = int8_at(act_at),
                        .row_stride = act_stride,
                        .row_scales = float_at(act_scales_at),
                        .weight = p.w_down,
                        .scales_expert_stride = p.hidden_size,
                        .dtype = p.dtype,
                        .bias = p.b_down,
                        .out = base + rows_at,
                        .out_stride = p.hidden_size};
    status = run(down, cut(experts, p.hidden_size, down.k, parallel.num_threads), parallel);
    if (status != Status::kOk) return status;
  }

  const CombineParams combine = {.dtype = p.dtype,
                                 .num_tokens = p.num_tokens,
                                 .top_k = p.top_k,
                                 .hidden_size = p.hidden_size,
                                 .rows = base + rows_at,
                                 .rows_stride = p.hidden_size,
                                 .topk_weights = p.weights_on_input ? nullptr : p.topk_weights,
                                 .slot_to_row = p.slot_to_row,
                                 .out = p.y,
                                 .out_stride = p.hidden_size};
  parallel.for_ranges(p.num_tokens, grain(p.top_k * p.hidden_size),
                      [&](int64_t begin, int64_t end) { kernels().combine_forward(combine, begin, end); });
  return Status::kOk;
}

}  // namespace moe::cpu
