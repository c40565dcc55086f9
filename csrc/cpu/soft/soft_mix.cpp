// Cuts sequences into blocks of results (backward: of values) and lets threads take them one by one. A thread forms the
// weights of its block with all they meet, in its scratch, and hands them to the matrix product as an operand like any
// other: weights exist for one block at a time.
//
// The sums of a result do not depend on the cut: a product's order of sums goes by its inner dimension.
#include "cpu/soft/soft_mix.h"

#include <algorithm>
#include <atomic>

#include "cpu/isa.h"
#include "cpu/scratch.h"

namespace moe::cpu {
namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

int64_t accumulator_size(DType dtype) { return dtype == DType::kFloat64 ? 8 : 4; }
const char* at(const void* data, int64_t index, int64_t size) { return static_cast<const char*>(data) + index * size; }
char* at(void* data, int64_t index, int64_t size) { return static_cast<char*>(data) + index * size; }

struct Block {
  int64_t sequence, begin, size;
};

// `batch` sequences of `size` rows each, in blocks of about the same size.
class Blocks {
 public:
  // `most` rows have their weights in a cache.
  Blocks(int64_t batch, int64_t size, int64_t most, int num_threads) : batch_(batch), size_(size) {
    // What else a block costs, in rows: the other operand of its product is packed once more.
    constexpr int64_t kRowsOfBlock = 48, kFewest = 32;
    int64_t best = INT64_MAX;
    for (int64_t cuts = ceil_div(size, most); cuts <= std::max<int64_t>(ceil_div(size, kFewest), 1); ++cuts) {
      const int64_t rounds = ceil_div(batch * cuts, num_threads);
      const int64_t cost = rounds * (ceil_div(size, cuts) + kRowsOfBlock);
      if (cost < best) best = cost, cuts_ = cuts;
      if (rounds > 8) break;
    }
    rows_ = round_up(ceil_div(size, cuts_), kFewest);
    cuts_ = ceil_div(size, rows_);
  }
  int64_t count() const { return batch_ * cuts_; }
  int64_t most_rows() const { return std::min(rows_, size_); }
  Block at(int64_t index) const {
    const int64_t begin = index % cuts_ * rows_;
    return {index / cuts_, begin, std::min(rows_, size_ - begin)};
  }

 private:
  int64_t batch_, size_, rows_ = 1, cuts_ = 1;
};

// Weights of `rows` of what is cut with `others` of what is not, as tokens by slots.
struct Panel {
  bool rows_are_tokens;
  int64_t num_tokens, num_slots, stride, bytes;

  Panel(DType dtype, bool rows_are_tokens_, int64_t rows, int64_t others)
      : rows_are_tokens(rows_are_tokens_),
        num_tokens(rows_are_tokens ? rows : others),
        num_slots(rows_are_tokens ? others : rows) {
    // Whole lines, and an odd number of them, lest all rows share a few sets of the caches.
    const int64_t line = 64 / size_of(dtype);
    stride = (ceil_div(num_slots, line) | 1) * line;
    bytes = round_up(num_tokens * stride * size_of(dtype), 64);
  }
  GemmOperand operand(const void* data) const {
    return {.data = data, .outer_stride = rows_are_tokens ? stride : 1, .k_stride = rows_are_tokens ? 1 : stride};
  }
};

// How many rows of `inner` numbers to make one block of: their panel stays in the L2 cache, unless there would be too
// few of them to be worth packing the other operand.
int64_t most_rows(const GemmKernel& kernel, const GemmJob& job, DType dtype) {
  constexpr int64_t kPanelBytes = int64_t{2} << 20, kFewest = 128;
  const int64_t fitting = kPanelBytes / (std::max<int64_t>(job.k, 1) * size_of(dtype)) / 32 * 32;
  return std::min(std::max(fitting, kFewest), kernel.row_chunk(job));
}

bool is_valid(const SoftMixParams& p) {
  const bool sizes = p.batch >= 0 && p.num_tokens >= 0 && p.num_slots >= 0 && p.width >= 0;
  return sizes && (p.dtype == DType::kFloat64) == (p.logits_dtype == DType::kFloat64);
}

// Rows of weights times the rows that they weigh, which lie b_stride apart.
GemmJob weighted_sums(const Panel& panel, int64_t rows, int64_t inner, int64_t width, const void* b, int64_t b_stride) {
  GemmJob job{};
  job.a = panel.operand(nullptr);
  job.b = {.data = b, .outer_stride = 1, .k_stride = b_stride};
  job.m = rows;
  job.n = width;
  job.k = inner;
  return job;
}

// body(block) for every block; kOutOfMemory once it has returned false.
template <class Body>
Status for_blocks(const Blocks& blocks, const Parallel& parallel, const Body& body) {
  std::atomic<bool> out_of_memory = false;
  parallel.for_each(blocks.count(), [&](int64_t index) {
    if (!body(blocks.at(index))) out_of_memory = true;
  });
  return out_of_memory ? Status::kOutOfMemory : Status::kOk;
}

}  // namespace

Status soft_mix(const SoftMixParams& p, const Parallel& parallel) {
  if (!is_valid(p)) return Status::kInvalidArgument;
  const KernelTable& table = kernels();
  const GemmKernel& kernel = table.gemm[static_cast<int>(p.dtype)];
  const int64_t results = p.num_results(), inner = p.num_values();
  if (p.batch == 0 || results == 0) return Status::kOk;
  EpilogueParams epilogue;
  epilogue.out = p.mixed;
  epilogue.out_row_stride = p.width;
  const auto product = [&](const Panel& panel, int64_t sequence, int64_t rows) {
    const void* values = at(p.values, sequence * p.values_batch_stride, size_of(p.dtype));
    GemmJob job = weighted_sums(panel, rows, inner, p.width, values, p.values_stride);
    job.params = &epilogue;
    return job;
  };
  const GemmJob whole = product(Panel(p.dtype, !p.dispatch, results, inner), 0, results);
  const Blocks blocks(p.batch, results, most_rows(kernel, whole, p.dtype), parallel.num_threads);
  return for_blocks(blocks, parallel, [&](const Block& block) {
    const Panel panel(p.dtype, !p.dispatch, block.size, inner);
    GemmJob job = product(panel, block.sequence, block.size);
    char* scratch = static_cast<char*>(thread_scratch(panel.bytes + kernel.scratch_bytes(job)));
    if (scratch == nullptr) return false;
    SoftWeights weights = {};
    weights.sequence = block.sequence;
    (p.dispatch ? weights.slot0 : weights.token0) = block.begin;
    weights.num_tokens = panel.num_tokens;
    weights.num_slots = panel.num_slots;
    weights.weights = scratch;
    weights.weights_stride = panel.stride;
    table.soft_forward(p, weights);
    if (p.width == 0) return true;
    job.a.data = scratch;
    job.row0 = block.sequence * results + block.begin;
    kernel.run(job, scratch + panel.bytes);
    return true;
  });
}

namespace {

class Backward {
 public:
  Backward(const SoftMixBackwardParams& params, const Parallel& parallel)
      : b_(params),
        p_(params.forward),
        parallel_(parallel),
        table_(kernels()),
        kernel_(table_.gemm[static_cast<int>(p_.dtype)]),
        size_(size_of(p_.dtype)),
        sum_size_(accumulator_size(p_.dtype)),
        results_(p_.num_results()),
        values_(p_.num_values()),
        deltas_(b_.grad_logits != nullptr ? p_.batch * results_ * sum_size_ : 0) {
    epilogue_.out = b_.grad_values;
    epilogue_.out_row_stride = p_.width;
  }

  Status run() {
    if (p_.batch == 0 || values_ == 0 || (p_.width == 0 && results_ == 0)) return Status::kOk;
    if (b_.grad_logits != nullptr) {
      if (deltas_.data() == nullptr) return Status::kOutOfMemory;
      constexpr int64_t kElementsPerRange = 65536;
      parallel_.for_ranges(p_.batch * results_, ceil_div(kElementsPerRange, p_.width + 1),
                           [&](int64_t begin, int64_t end) { table_.soft_deltas(b_, begin, end, deltas_.data()); });
    }
    const Panel panel(p_.dtype, p_.dispatch, values_, results_);
    const Blocks blocks(p_.batch, values_, most_rows(kernel_, values_product(panel, {0, 0, values_}), p_.dtype),
                        parallel_.num_threads);
    return for_blocks(blocks, parallel_, [&](const Block& block) { return run_block(block); });
  }

 private:
  // Tokens whose dot products are formed at once: they stay in the L2 cache.
  static constexpr int64_t kTokens = 256;

  const char* values(int64_t sequence, int64_t row) const {
    return at(p_.values, sequence * p_.values_batch_stride + row * p_.values_stride, size_);
  }
  const char* grads(int64_t sequence, int64_t row) const {
    return at(b_.grad_mixed, sequence * b_.grad_mixed_batch_stride + row * b_.grad_mixed_stride, size_);
  }

  GemmJob values_product(const Panel& panel, const Block& block) const {
    GemmJob job = weighted_sums(panel, block.size, results_, p_.width, grads(block.sequence, 0), b_.grad_mixed_stride);
    job.params = &epilogue_;
    job.row0 = block.sequence * values_ + block.begin;
    return job;
  }

  // The dot products of some tokens with the slots of a block.
  GemmJob dots_product(const SoftWeights& weights, const EpilogueParams& epilogue) const {
    const char *value = values(weights.sequence, p_.dispatch ? weights.token0 : weights.slot0),
               *grad = grads(weights.sequence, p_.dispatch ? weights.slot0 : weights.token0);
    const GemmOperand of_values = {.data = value, .outer_stride = p_.values_stride, .k_stride = 1};
    const GemmOperand of_grads = {.data = grad, .outer_stride = b_.grad_mixed_stride, .k_stride = 1};
    GemmJob job{};
    job.a = p_.dispatch ? of_values : of_grads;
    job.b = p_.dispatch ? of_grads : of_values;
    job.m = weights.num_tokens;
    job.n = weights.num_slots;
    job.k = p_.width;
    job.epilogue = Epilogue::kStoreSums;
    job.params = &epilogue;
    return job;
  }

  bool run_block(const Block& block) const {
    const Panel panel(p_.dtype, p_.dispatch, block.size, results_);
    SoftWeights weights = {};
    weights.sequence = block.sequence;
    weights.num_slots = panel.num_slots;
    (p_.dispatch ? weights.token0 : weights.slot0) = block.begin;
    EpilogueParams sums;
    sums.out_row_stride = weights.num_slots;
    const int64_t first = weights.token0, dots_bytes = round_up(kTokens * weights.num_slots * sum_size_, 64);
    const GemmJob product = values_product(panel, block);
    int64_t product_bytes = kernel_.scratch_bytes(product);
    for (const int64_t tokens : {std::min(kTokens, panel.num_tokens), panel.num_tokens % kTokens}) {
      weights.num_tokens = tokens;
      product_bytes = std::max(product_bytes, kernel_.scratch_bytes(dots_product(weights, sums)));
    }
    char* scratch = static_cast<char*>(thread_scratch(panel.bytes + dots_bytes + product_bytes));
    if (scratch == nullptr) return false;
    sums.out = scratch + panel.bytes;
    weights.weights_stride = panel.stride;
    weights.deltas = deltas_.data();
    weights.dots = sums.out;
    for (int64_t done = 0; done < panel.num_tokens; done += kTokens) {
      weights.token0 = first + done;
      weights.num_tokens = std::min(kTokens, panel.num_tokens - done);
      if (b_.grad_logits != nullptr && weights.num_slots > 0) {
        kernel_.run(dots_product(weights, sums), scratch + panel.bytes + dots_bytes);
        const int64_t logit = (block.sequence * p_.num_tokens + weights.token0) * p_.num_slots + weights.slot0;
        weights.grad_logits = at(b_.grad_logits, logit, size_of(p_.logits_dtype));
      }
      if (b_.grad_values != nullptr) weights.weights = at(scratch, done * panel.stride, size_);
      table_.soft_weights(p_, weights);
    }
    if (b_.grad_values != nullptr && p_.width > 0) {
      GemmJob job = product;
      job.a.data = scratch;
      kernel_.run(job, scratch + panel.bytes + dots_bytes);
    }
    return true;
  }

  const SoftMixBackwardParams& b_;
  const SoftMixParams& p_;
  const Parallel& parallel_;
  const KernelTable& table_;
  const GemmKernel& kernel_;
  const int64_t size_, sum_size_, results_, values_;
  const Workspace deltas_;
  EpilogueParams epilogue_;
};

}  // namespace

Status soft_mix_backward(const SoftMixBackwardParams& p, const Parallel& parallel) {
  if (!is_valid(p.forward)) return Status::kInvalidArgument;
  return Backward(p, parallel).run();
}

}  // namespace moe::cpu
