// segment_sum: the sum of every expert's rows. Contract: moe/combine.h.
//
// A block takes one expert and the columns of one warp. Its warps share out the expert's rows in order: each adds a run
// of rows one after the other, then the sums of the runs are added in order. How long a run is depends on the expert's
// number of rows and on nothing else; an expert with at most kMinRun rows is one run, summed as on the CPU.
#include "cuda/combine/combine.h"
#include "cuda/combine/row_types.cuh"
#include "cuda/common/fast_divide.h"
#include "cuda/common/launch_kernel.cuh"

namespace moe::cuda {

namespace {

constexpr int kRuns = 8;  // warps of a block
constexpr int kThreads = kRuns * 32;
constexpr int32_t kMinRun = 32;
constexpr int kRowsInFlight = 8;
// With fewer blocks of vectors than this, single elements give more threads something to wait for.
constexpr int64_t kManyBlocks = 256;

struct SegmentSum {
  SegmentSumParams params;
  int32_t num_rows;
  int64_t num_slots;  // with a gather
  FastDivide top_k;
};

// Where some sorted rows lie, and what they are multiplied by. Their indices are loaded together, before the rows.
template <class T>
struct Sources {
  const T* rows[kRowsInFlight];  // null: nowhere
  acc_t<T> weights[kRowsInFlight];

  __device__ Sources(const SegmentSum& s, int32_t first, int32_t end) {
    const SegmentSumParams& p = s.params;
    const bool gathers = p.row_to_slot != nullptr;
    int64_t index[kRowsInFlight];
#pragma unroll
    for (int i = 0; i < kRowsInFlight; ++i) {
      const int64_t row = int64_t{first} + i;
      index[i] = row >= end ? -1 : gathers ? p.row_to_slot[row] : row;
    }
#pragma unroll
    for (int i = 0; i < kRowsInFlight; ++i) {
      weights[i] = acc_t<T>(1);
      const bool exists = index[i] >= 0 && (!gathers || index[i] < s.num_slots);
      if (exists && gathers && p.topk_weights != nullptr) {
        weights[i] = static_cast<const acc_t<T>*>(p.topk_weights)[index[i]];
      }
      const int64_t row = gathers ? s.top_k(static_cast<uint32_t>(index[i])) : index[i];
      rows[i] = exists ? static_cast<const T*>(p.rows) + row * p.rows_stride : nullptr;
    }
  }
};

template <class T, int kWidth>
__global__ void __launch_bounds__(kThreads) segment_sum_kernel(SegmentSum s) {
  using A = acc_t<T>;
  __shared__ A of_runs[kRuns - 1][kWidth][32];
  const SegmentSumParams& p = s.params;
  const int lane = static_cast<int>(threadIdx.x) % 32, run = static_cast<int>(threadIdx.x) / 32;
  const int64_t expert = blockIdx.x;
  const int32_t begin = min(max(p.expert_offsets[expert], 0), s.num_rows);
  const int32_t end = min(max(p.expert_offsets[expert + 1], begin), s.num_rows);
  const int32_t run_rows = max((end - begin + kRuns - 1) / kRuns, kMinRun);
  const int32_t first_row = static_cast<int32_t>(min(begin + static_cast<int64_t>(run) * run_rows, int64_t{end}));
  const int32_t end_row = first_row + min(run_rows, end - first_row);

  for (int64_t block_column = blockIdx.y * 32 * kWidth; block_column < p.width;
       block_column += gridDim.y * 32 * kWidth) {
    const int64_t column = block_column + lane * kWidth;
    const bool exists = column < p.width;
    A sums[kWidth] = {};
    for (int32_t row = first_row; row < end_row; row += kRowsInFlight) {
      const Sources<T> sources(s, row, end_row);
      Vector<T, kWidth> values[kRowsInFlight];
#pragma unroll
      for (int i = 0; i < kRowsInFlight; ++i) {
        if (exists && sources.rows[i] != nullptr) values[i] = load<kWidth>(sources.rows[i] + column);
      }
#pragma unroll
      for (int i = 0; i < kRowsInFlight; ++i) {
        if (!exists || sources.rows[i] == nullptr) continue;
        A wide[kWidth];
        to_acc(values[i], wide);
#pragma unroll
        for (int j = 0; j < kWidth; ++j) sums[j] = add_product(sums[j], sources.weights[i], wide[j]);
      }
    }
    if (run > 0) {
#pragma unroll
      for (int j = 0; j < kWidth; ++j) of_runs[run - 1][j][lane] = sums[j];
    }
    __syncthreads();
    if (run == 0 && exists) {
      for (int other = 0; other < kRuns - 1; ++other) {
#pragma unroll
        for (int j = 0; j < kWidth; ++j) sums[j] += of_runs[other][j][lane];
      }
      store_whole(static_cast<T*>(p.out) + expert * p.width + column, from_acc<T, kWidth>(sums));
    }
    __syncthreads();
  }
}

template <class T, int kWidth>
Outcome sum(const SegmentSum& s, Stream stream) {
  const int64_t columns = (s.params.width + 32 * kWidth - 1) / (32 * kWidth);
  const dim3 grid(static_cast<unsigned>(s.params.num_experts),
                  static_cast<unsigned>(std::min<int64_t>(columns, 65535)));
  return launch("segment_sum", segment_sum_kernel<T, kWidth>, grid, kThreads, 0, stream, s);
}

}  // namespace

Outcome segment_sum(const SegmentSumLaunch& segments, Stream stream) {
  const SegmentSumParams& p = segments.params;
  if (p.num_experts < 0 || p.num_experts >= INT32_MAX || p.width < 0 || p.top_k < 1 || segments.num_rows < 0 ||
      segments.num_rows >= INT32_MAX || segments.num_tokens < 0 || segments.num_tokens > INT64_MAX / p.top_k) {
    return {Status::kInvalidArgument};
  }
  if (p.width == 0) return {};
  const SegmentSum s = {p, static_cast<int32_t>(segments.num_rows), segments.num_tokens * p.top_k,
                        FastDivide(static_cast<uint32_t>(std::min<int64_t>(p.top_k, INT32_MAX)))};
  const bool aligned =
      is_vectorisable(p.dtype, p.rows, p.rows_stride, p.width) && is_vectorisable(p.dtype, p.out, p.width, p.width);
  return with_type(p.dtype, [&]<class T>(T*) {
    const bool vectors = aligned && p.num_experts * (p.width / (32 * kVector<T>)) >= kManyBlocks;
    return vectors ? sum<T, kVector<T>>(s, stream) : sum<T, 1>(s, stream);
  });
}

}  // namespace moe::cuda
