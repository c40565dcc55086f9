// The gradient of combine. Contract: moe/combine.h, combine.h.
//
// A block per token reads the token's gradient, writes it scaled to the rows of all its choices, and with the rows at
// hand forms the dot products that are the gradient of the weights. Which rows have no slot the slots cannot say, so
// their inverse is made first: further blocks walk it and clear those rows. Of two slots that name one row, the one in
// the inverse writes it.
#include "cuda/combine/combine.h"
#include "cuda/combine/token_dots.cuh"
#include "cuda/common/launch_kernel.cuh"
#include "cuda/permute/permute.h"

namespace moe::cuda {

namespace {

constexpr int64_t kRowsPerBlock = 32;  // of those that look for rows to clear

struct Backward {
  CombineBackwardParams params;
  int64_t num_rows;
  const int32_t* row_to_slot;  // of num_rows; with grad_rows
};

template <class T, int kWidth>
__device__ void clear_rows(const Backward& b, int64_t first_row) {
  const int64_t width = b.params.hidden_size, end = min(first_row + kRowsPerBlock, b.num_rows);
  for (int64_t row = first_row; row < end; ++row) {
    if (b.row_to_slot[row] >= 0) continue;
    for (int64_t column = threadIdx.x * kWidth; column < width; column += kDotThreads * kWidth) {
      store_whole(static_cast<T*>(b.params.grad_rows) + row * width + column, Vector<T, kWidth>{});
    }
  }
}

template <class T, int kWidth>
__global__ void __launch_bounds__(kDotThreads) combine_backward_kernel(Backward b) {
  using A = acc_t<T>;
  __shared__ DotShared<A> shared;
  __shared__ bool owns[kDotChoices];  // whether the choice's row is its own to write
  const CombineBackwardParams& p = b.params;
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t token = blockIdx.x;
  if (token >= p.num_tokens) return clear_rows<T, kWidth>(b, (token - p.num_tokens) * kRowsPerBlock);

  const bool wants_dots = p.grad_topk_weights != nullptr;
  const T* grad_y = static_cast<const T*>(p.grad_y) + token * p.grad_y_stride;
  TokenDots<A> dots(shared);
  for (int64_t first_k = 0; first_k < p.top_k; first_k += kDotChoices) {
    const int count = static_cast<int>(min(p.top_k - first_k, static_cast<int64_t>(kDotChoices)));
    const int64_t first_slot = token * p.top_k + first_k;
    load_choices(shared, p.slot_to_row, p.topk_weights, first_slot, count, b.num_rows);
    dots.clear();
    __syncthreads();
    if (thread < kDotChoices) {
      const int64_t row = shared.rows[thread];
      owns[thread] = row >= 0 && p.grad_rows != nullptr && b.row_to_slot[row] == first_slot + thread;
    }
    __syncthreads();

    for (int64_t of_block = 0; of_block < p.hidden_size; of_block += kDotThreads * kWidth) {
      const int64_t column = of_block + thread * kWidth;
      const bool exists = column < p.hidden_size;
      Vector<T, kWidth> grad_vector = {};
      if (exists) grad_vector = load<kWidth>(grad_y + column);
      A grad[kWidth];
      to_acc(grad_vector, grad);
      for (int first = 0; first < count; first += kBatch) {
        Vector<T, kWidth> values[kBatch];
#pragma unroll
        for (int i = 0; i < kBatch; ++i) {
          const int64_t row = shared.rows[first + i];
          values[i] = {};
          if (!exists || row < 0 || !wants_dots) continue;
          values[i] = load<kWidth>(static_cast<const T*>(p.rows) + row * p.rows_stride + column);
        }
        A products[kBatch];
#pragma unroll
        for (int i = 0; i < kBatch; ++i) {
          A wide[kWidth];
          to_acc(values[i], wide);
          products[i] = shared.rows[first + i] < 0 ? A(0) : dot(grad, wide);  // infinity * 0 would be NaN
          if (!exists || !owns[first + i]) continue;
          A scaled[kWidth];
#pragma unroll
          for (int j = 0; j < kWidth; ++j) scaled[j] = shared.weights[first + i] * grad[j];
          T* row = static_cast<T*>(p.grad_rows) + shared.rows[first + i] * p.hidden_size;
          store_whole(row + column, from_acc<T, kWidth>(scaled));
        }
        if (wants_dots) dots.add(first, products);
      }
    }
    __syncthreads();
    if (wants_dots && thread < count) {
      static_cast<A*>(p.grad_topk_weights)[first_slot + thread] = dots.total(thread);
    }
    __syncthreads();
  }
}

template <class T, int kWidth>
Outcome backward(const Backward& b, Stream stream) {
  const int64_t clearing = b.params.grad_rows == nullptr ? 0 : (b.num_rows + kRowsPerBlock - 1) / kRowsPerBlock;
  return launch("combine_backward", combine_backward_kernel<T, kWidth>,
                static_cast<unsigned>(b.params.num_tokens + clearing), kDotThreads, 0, stream, b);
}

}  // namespace

int64_t combine_backward_workspace_bytes(int64_t num_rows) { return num_rows * static_cast<int64_t>(sizeof(int32_t)); }

Outcome combine_backward(const CombineBackwardParams& p, int64_t num_rows, void* workspace, Stream stream) {
  if (p.num_tokens < 0 || p.top_k < 0 || p.hidden_size < 0 || num_rows < 0 || num_rows >= INT32_MAX ||
      (p.top_k == 0 ? p.num_tokens >= INT32_MAX : p.num_tokens >= INT32_MAX / p.top_k)) {
    return {Status::kInvalidArgument};
  }
  Backward b = {p, num_rows, static_cast<const int32_t*>(workspace)};
  if (p.hidden_size == 0) b.params.grad_rows = nullptr;
  if (b.params.grad_rows != nullptr) {
    const Outcome outcome =
        invert_slots(p.slot_to_row, p.num_tokens * p.top_k, static_cast<int32_t*>(workspace), num_rows, stream);
    if (!outcome.ok()) return outcome;
  }
  const bool vectors = is_vectorisable(p.dtype, p.grad_y, p.grad_y_stride, p.hidden_size) &&
                       is_vectorisable(p.dtype, p.rows, p.rows_stride, p.hidden_size) &&
                       is_vectorisable(p.dtype, p.grad_rows, p.hidden_size, p.hidden_size);
  return with_type(
      p.dtype, [&]<class T>(T*) { return vectors ? backward<T, kVector<T>>(b, stream) : backward<T, 1>(b, stream); });
}

}  // namespace moe::cuda
