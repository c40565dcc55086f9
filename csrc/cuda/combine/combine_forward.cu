// combine: every token's weighted sum of its rows. Contract: moe/combine.h.
//
// A thread takes one vector of a token and adds the token's rows in the order of k, several of them in flight: each row
// is read once, each sum rounded once. Bits are those of the CPU.
#include "cuda/combine/combine_forward.h"

#include "cuda/combine/row_types.cuh"
#include "cuda/common/launch_kernel.cuh"

namespace moe::cuda {

namespace {

constexpr int kRowsInFlight = 4;

template <class T, int kWidth>
__global__ void __launch_bounds__(kRowGridThreads)
    combine_kernel(CombineParams p, int64_t num_rows, int row_threads_log2) {
  using A = acc_t<T>;
  const RowPlace place(row_threads_log2, 1);
  const int64_t token = place.row;
  if (token >= p.num_tokens) return;
  const int32_t* rows_of_token = p.slot_to_row + token * p.top_k;
  const A* weights = p.topk_weights == nullptr ? nullptr : static_cast<const A*>(p.topk_weights) + token * p.top_k;
  for (int64_t vector = place.first; vector < p.hidden_size / kWidth; vector += place.stride) {
    const T* column = static_cast<const T*>(p.rows) + vector * kWidth;
    A sums[kWidth] = {};
    for (int64_t first = 0; first < p.top_k; first += kRowsInFlight) {
      int64_t row[kRowsInFlight];
      Vector<T, kWidth> values[kRowsInFlight];
      A weight[kRowsInFlight];
#pragma unroll
      for (int i = 0; i < kRowsInFlight; ++i) {
        const int64_t k = first + i;
        row[i] = k < p.top_k ? existing_row(rows_of_token[k], num_rows) : -1;
        if (row[i] < 0) continue;
        values[i] = load<kWidth>(column + row[i] * p.rows_stride);
        weight[i] = weights == nullptr ? A(1) : weights[k];
      }
#pragma unroll
      for (int i = 0; i < kRowsInFlight; ++i) {
        if (row[i] < 0) continue;
        A wide[kWidth];
        to_acc(values[i], wide);
#pragma unroll
        for (int j = 0; j < kWidth; ++j) sums[j] = add_product(sums[j], weight[i], wide[j]);
      }
    }
    store(static_cast<T*>(p.out) + token * p.out_stride + vector * kWidth, from_acc<T, kWidth>(sums));
  }
}

template <class T, int kWidth>
Outcome combine(const CombineParams& p, int64_t num_rows, Stream stream) {
  const RowGrid grid = row_grid(p.num_tokens, p.hidden_size / kWidth, 1);
  return launch("combine", combine_kernel<T, kWidth>, grid.blocks, kRowGridThreads, 0, stream, p, num_rows,
                grid.row_threads_log2);
}

}  // namespace

Outcome combine_rows(const CombineParams& p, int64_t num_rows, Stream stream) {
  if (p.hidden_size == 0) return {};
  const bool vectors = is_vectorisable(p.dtype, p.rows, p.rows_stride, p.hidden_size) &&
                       is_vectorisable(p.dtype, p.out, p.out_stride, p.hidden_size);
  return with_type(p.dtype, [&]<class T>(T*) {
    return vectors ? combine<T, kVector<T>>(p, num_rows, stream) : combine<T, 1>(p, num_rows, stream);
  });
}

Outcome combine_forward(const CombineParams& p, const CombineExtras& extras, Stream stream) {
  if (p.num_tokens < 0 || p.num_tokens >= INT32_MAX || p.top_k < 0 || p.hidden_size < 0 || extras.num_rows < 0) {
    return {Status::kInvalidArgument};
  }
  const bool plain = extras.dots == nullptr && extras.sums == nullptr;
  if (p.out != nullptr && (plain || p.top_k > kMaxDots)) {
    const Outcome outcome = combine_rows(p, extras.num_rows, stream);
    if (plain || !outcome.ok()) return outcome;
  }
  if (plain) return {};
  CombineParams rest = p;
  if (p.top_k > kMaxDots) rest.out = nullptr;
  return combine_with_dots(rest, extras, stream);
}

}  // namespace moe::cuda
