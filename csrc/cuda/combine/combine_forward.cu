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

// Rows and weights of some of a token's choices, loaded together and before the rows that they lead to.
template <class A>
struct Choices {
  int32_t rows[kRowsInFlight];
  A weights[kRowsInFlight];

  __device__ Choices(const int32_t* row_of, const A* weight_of, int64_t first, int64_t top_k) {
#pragma unroll
    for (int i = 0; i < kRowsInFlight; ++i) {
      const bool exists = first + i < top_k;
      rows[i] = exists ? row_of[first + i] : -1;
      weights[i] = exists && weight_of != nullptr ? weight_of[first + i] : A(1);
    }
  }
};

template <class T, int kWidth>
__global__ void __launch_bounds__(kRowGridThreads)
    combine_kernel(CombineParams p, uint32_t num_rows, int row_threads_log2) {
  using A = acc_t<T>;
  const RowPlace place(row_threads_log2, 1);
  const int64_t token = place.row;
  if (token >= p.num_tokens) return;
  const int32_t* row_of = p.slot_to_row + token * p.top_k;
  const A* weight_of = p.topk_weights == nullptr ? nullptr : static_cast<const A*>(p.topk_weights) + token * p.top_k;
  for (int64_t vector = place.first; vector < p.hidden_size / kWidth; vector += place.stride) {
    const T* column = static_cast<const T*>(p.rows) + vector * kWidth;
    A sums[kWidth] = {};
    Choices<A> next(row_of, weight_of, 0, p.top_k);
    for (int64_t first = 0; first < p.top_k; first += kRowsInFlight) {
      const Choices<A> choices = next;
      Vector<T, kWidth> values[kRowsInFlight];
#pragma unroll
      for (int i = 0; i < kRowsInFlight; ++i) {
        const uint32_t row = static_cast<uint32_t>(choices.rows[i]);
        if (row < num_rows) values[i] = load<kWidth>(column + row * p.rows_stride);
      }
      next = Choices<A>(row_of, weight_of, first + kRowsInFlight, p.top_k);
#pragma unroll
      for (int i = 0; i < kRowsInFlight; ++i) {
        if (static_cast<uint32_t>(choices.rows[i]) >= num_rows) continue;
        A wide[kWidth];
        to_acc(values[i], wide);
#pragma unroll
        for (int j = 0; j < kWidth; ++j) sums[j] = add_product(sums[j], choices.weights[i], wide[j]);
      }
    }
    store_whole(static_cast<T*>(p.out) + token * p.out_stride + vector * kWidth, from_acc<T, kWidth>(sums));
  }
}

template <class T, int kWidth>
Outcome combine(const CombineParams& p, uint32_t num_rows, Stream stream) {
  const RowGrid grid = row_grid(p.num_tokens, p.hidden_size / kWidth, 1);
  return launch("combine", combine_kernel<T, kWidth>, grid.blocks, kRowGridThreads, 0, stream, p, num_rows,
                grid.row_threads_log2);
}

}  // namespace

Outcome combine_rows(const CombineParams& p, int64_t num_rows, Stream stream) {
  if (p.hidden_size == 0) return {};
  const uint32_t rows = static_cast<uint32_t>(num_rows);
  const bool vectors = is_vectorisable(p.dtype, p.rows, p.rows_stride, p.hidden_size) &&
                       is_vectorisable(p.dtype, p.out, p.out_stride, p.hidden_size);
  return with_type(p.dtype, [&]<class T>(T*) {
    return vectors ? combine<T, kVector<T>>(p, rows, stream) : combine<T, 1>(p, rows, stream);
  });
}

Outcome combine_forward(const CombineParams& p, const CombineExtras& extras, Stream stream) {
  if (p.num_tokens < 0 || p.num_tokens >= INT32_MAX || p.top_k < 0 || p.hidden_size < 0 || extras.num_rows < 0 ||
      extras.num_rows >= INT32_MAX) {
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
