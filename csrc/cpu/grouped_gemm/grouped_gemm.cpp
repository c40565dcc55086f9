// Cuts a product over all experts into jobs, each a block of one expert's rows times a block of its columns, and lets
// threads take them one by one. A skewed routing then keeps every thread busy, and which thread runs a job does not
// change its result.
#include "cpu/grouped_gemm/grouped_gemm.h"

#include <algorithm>
#include <atomic>
#include <numeric>
#include <vector>

#include "cpu/isa.h"
#include "cpu/scratch.h"
#include "moe/fused_experts.h"

namespace moe::cpu {
namespace {

struct JobRange {
  int64_t expert, row0, rows, col0, columns;
};

// Enough jobs that the last ones to finish do not leave threads waiting long.
constexpr int64_t kJobsPerThread = 6;
constexpr int64_t kFewestColumns = 128;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t row_chunk(const GemmKernel& kernel, const GemmJob& job) {
  // Equal chunks rather than a short last one: the weight is read once per chunk.
  const int64_t most = kernel.row_chunk(job), chunks = ceil_div(job.m, most);
  return std::min(most, ceil_div(ceil_div(job.m, chunks), 32) * 32);
}

// Time that rows of an expert take, in rows: the weight has to come from memory for the first of them.
int64_t work_of(const GemmJob& job, int64_t rows) {
  constexpr int64_t kRowsOfWeight = 64;
  return (rows + kRowsOfWeight) * job.n;
}

// Jobs begin at multiples of this. No two of them share a scale of what is kept as MXFP8.
int64_t column_step(const GemmKernel& kernel, const GemmJob& job) {
  return job.params->preact_is_mxfp8 ? std::lcm(kernel.column_block, kMxfp8Columns) : kernel.column_block;
}

const char* element(const void* data, int64_t index, DType dtype) {
  return static_cast<const char*>(data) + index * size_of(dtype);
}

}  // namespace

Status run_grouped(const GroupedProduct& product, const Parallel& parallel) {
  const GemmKernel& kernel = kernels().gemm[static_cast<int>(product.dtype)];
  std::vector<GemmJob> experts(product.num_experts);
  int64_t work = 0;
  for (int64_t e = 0; e < product.num_experts; ++e) {
    GemmJob& job = experts[e] = product.describe(e);
    if (!product.batch_invariant) job.expert_rows = job.m;
    if (job.m > 0 && job.n > 0) work += work_of(job, job.m);
  }
  if (work == 0) return Status::kOk;

  // Columns are only cut where a block of rows with all of them would be too large a share of the work: each cut packs
  // the rows again.
  const int64_t wanted = parallel.num_threads > 1 ? kJobsPerThread * parallel.num_threads : 1;
  std::vector<JobRange> jobs;
  for (int64_t e = 0; e < product.num_experts; ++e) {
    const GemmJob& job = experts[e];
    if (job.m <= 0 || job.n <= 0) continue;
    const int64_t rows = row_chunk(kernel, job), step = column_step(kernel, job);
    const int64_t share = ceil_div(work_of(job, std::min(rows, job.m)) * wanted, work);
    const int64_t cuts = std::max<int64_t>(1, std::min(share, job.n / kFewestColumns));
    const int64_t columns = ceil_div(ceil_div(job.n, cuts), step) * step;
    for (int64_t i = 0; i < job.m; i += rows) {
      for (int64_t j = 0; j < job.n; j += columns) {
        jobs.push_back({e, i, std::min(rows, job.m - i), j, std::min(columns, job.n - j)});
      }
    }
  }

  const auto b_of = [&](const JobRange& range) {
    const GemmOperand& b = experts[range.expert].b;
    return element(b.data, range.col0 * b.outer_stride, product.dtype);
  };
  std::atomic<int64_t> next = 0;
  std::atomic<bool> out_of_memory = false;
  const int64_t workers = std::min<int64_t>(parallel.num_threads, jobs.size());
  parallel.for_each(workers, [&](int64_t) {
    for (int64_t at = next++; at < static_cast<int64_t>(jobs.size()); at = next++) {
      const JobRange& range = jobs[at];
      GemmJob job = experts[range.expert];
      const GemmOperand whole_a = job.a;
      if (job.a.index && !job.a.index_along_k) {
        job.a.index += range.row0;
      } else {
        job.a.data = element(whole_a.data, range.row0 * whole_a.outer_stride, product.dtype);
      }
      job.b.data = b_of(range);
      // Threads that take turns are one round further by then.
      if (at + workers < static_cast<int64_t>(jobs.size())) job.next_b = b_of(jobs[at + workers]);
      job.row0 += range.row0;
      job.col0 += range.col0;
      job.m = range.rows;
      job.n = range.columns;
      void* scratch = thread_scratch(kernel.scratch_bytes(job));
      if (!scratch) {
        out_of_memory = true;
        return;
      }
      kernel.run(job, scratch);
    }
  });
  return out_of_memory ? Status::kOutOfMemory : Status::kOk;
}

Status grouped_gemm(const GroupedGemmParams& p, const Parallel& parallel) {
  EpilogueParams shared;
  shared.out = p.out;
  shared.out_row_stride = p.out_stride;
  shared.bias_stride = p.bias_stride;
  shared.is_cold = outgrows_caches(p.expert_offsets[p.num_experts] * p.n * size_of(p.dtype));
  std::vector<EpilogueParams> epilogues(p.num_experts, shared);
  const auto describe = [&](int64_t e) {
    const int64_t begin = p.expert_offsets[e];
    if (p.bias) epilogues[e].bias = element(p.bias, e * p.bias_expert_stride, p.dtype);
    GemmJob job{};
    job.a = {.data = p.rows, .outer_stride = p.rows_stride, .k_stride = p.rows_k_stride};
    if (p.gather) {
      job.a.index = p.gather + begin;
      job.a.index_divisor = p.gather_divisor;
    } else {
      job.a.data = element(p.rows, begin * p.rows_stride, p.dtype);
    }
    job.b = {.data = element(p.weight.data, e * p.weight.expert_stride, p.dtype),
             .outer_stride = p.weight.n_stride,
             .k_stride = p.weight.k_stride,
             .is_tiled = p.weight.is_tiled};
    job.m = p.expert_offsets[e + 1] - begin;
    job.n = p.n;
    job.k = p.k;
    job.epilogue = Epilogue::kStore;
    job.params = &epilogues[e];
    job.row0 = begin;
    return job;
  };
  return run_grouped({p.dtype, p.num_experts, p.batch_invariant, describe}, parallel);
}

Status grouped_gemm_wgrad(const GroupedGemmWgradParams& p, const Parallel& parallel) {
  const int64_t out_size = p.accumulate ? (p.dtype == DType::kFloat64 ? 8 : 4) : size_of(p.dtype);
  // The product is computed along the contiguous columns of out: [n, k], or [k, n] for a transposed weight.
  const bool transposed = p.out_k_stride != 1 && p.out_n_stride == 1;
  std::vector<EpilogueParams> epilogues(p.num_experts);
  const auto describe = [&](int64_t e) {
    const int64_t begin = p.expert_offsets[e];
    const auto operand = [&](const void* data, int64_t row_stride, int64_t column_stride, const int32_t* gather,
                             int64_t divisor) {
      GemmOperand result{.data = data, .outer_stride = column_stride, .k_stride = row_stride};
      if (gather) {
        result.index = gather + begin;
        result.index_divisor = divisor;
        result.index_along_k = true;
      } else {
        result.data = element(data, begin * row_stride, p.dtype);
      }
      return result;
    };
    const GemmOperand grad_out =
        operand(p.grad_out, p.grad_out_stride, p.grad_out_n_stride, p.grad_out_gather, p.gather_divisor);
    const GemmOperand rows = operand(p.rows, p.rows_stride, p.rows_k_stride, p.gather, p.gather_divisor);
    EpilogueParams& epilogue = epilogues[e];
    epilogue.out = static_cast<char*>(p.out) + e * p.out_expert_stride * out_size;
    epilogue.out_row_stride = transposed ? p.out_k_stride : p.out_n_stride;
    epilogue.out_col_stride = transposed ? p.out_n_stride : p.out_k_stride;
    epilogue.is_cold = true;
    GemmJob job{};
    job.a = transposed ? rows : grad_out;
    job.b = transposed ? grad_out : rows;
    job.operands_swapped = transposed;
    job.m = transposed ? p.k : p.n;
    job.n = transposed ? p.n : p.k;
    job.k = p.expert_offsets[e + 1] - begin;
    job.epilogue = p.accumulate ? Epilogue::kAccumulate : Epilogue::kStore;
    job.params = &epilogue;
    if (p.accumulate && job.k == 0) job.m = 0;
    return job;
  };
  return run_grouped({p.dtype, p.num_experts, true, describe}, parallel);
}

}  // namespace moe::cpu
