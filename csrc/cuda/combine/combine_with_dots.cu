// combine, and in the same walk what the gradient of routing weights needs. Contract: CombineExtras in combine.h.
//
// A block per token. Its threads take vectors of the token and add the token's rows in the order of k, as combine does;
// with the row at hand they also form its product with others[t]. Partial sums of a row are added in order by one warp.
// Each row is read once. Where rows are not aligned the same threads read the same columns one by one: the same sums.
#include "cuda/combine/combine_forward.h"
#include "cuda/combine/token_dots.cuh"
#include "cuda/common/launch_kernel.cuh"

namespace moe::cuda {

namespace {

static_assert(kMaxDots == kDotChoices);

// The expert that owns a row: the last whose rows begin at or before it.
__device__ int64_t expert_of(const int32_t* expert_offsets, int64_t num_experts, int32_t row) {
  int64_t begin = 0, end = num_experts - 1;
  while (begin < end) {
    const int64_t middle = (begin + end + 1) / 2;
    if (expert_offsets[middle] <= row) {
      begin = middle;
    } else {
      end = middle - 1;
    }
  }
  return begin;
}

// One warp: values[0] + values[1] + ... in this order, the same in all lanes.
template <class A>
__device__ A sum_in_order(const A* values, int64_t count) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  A sum = 0;
  for (int64_t first = 0; first < count; first += 32) {
    const A own = first + lane < count ? values[first + lane] : A(0);
#pragma unroll
    for (int i = 0; i < 32; ++i) sum += __shfl_sync(0xffffffffu, own, i);
  }
  return sum;
}

// The vector at source, of which `left` elements exist; zeros after them. Aligned ones exist whole or not at all.
template <class T, bool kAligned>
__device__ Vector<T, kVector<T>> load_vector(const T* source, int64_t left, int64_t stride = 1) {
  Vector<T, kVector<T>> vector = {};
  if constexpr (kAligned) {
    if (left > 0) vector = load<kVector<T>>(source);
  } else {
#pragma unroll
    for (int i = 0; i < kVector<T>; ++i) {
      vector.values[i] = i < left ? source[i * stride] : T(0.0f);
    }
  }
  return vector;
}

template <class T, bool kAligned>
__device__ void store_vector(T* target, const Vector<T, kVector<T>>& vector, int64_t left) {
  if constexpr (kAligned) {
    if (left > 0) store_whole(target, vector);
  } else {
#pragma unroll
    for (int i = 0; i < kVector<T>; ++i) {
      if (i < left) target[i] = vector.values[i];
    }
  }
}

// <others, bias of the expert of each choice's row>.
template <class T, bool kAligned>
__device__ void add_bias_dots(const CombineExtras& x, const T* others, const int32_t* rows, int count,
                              TokenDots<acc_t<T>>& dots) {
  constexpr int kWidth = kVector<T>;
  using A = acc_t<T>;
  for (int first = 0; first < count; first += kBatch) {
    const T* bias[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int32_t row = rows[first + i];
      const int64_t expert = row < 0 ? 0 : expert_of(x.expert_offsets, x.num_experts, row);
      bias[i] = row < 0 ? nullptr : static_cast<const T*>(x.bias) + expert * x.bias_expert_stride;
    }
    for (int64_t of_block = 0; of_block < x.others_size; of_block += kDotThreads * kWidth) {
      const int64_t column = of_block + threadIdx.x * kWidth;
      const int64_t left = x.others_size - column;
      A other[kWidth], products[kBatch];
      to_acc(load_vector<T, kAligned>(others + column, left), other);
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        A wide[kWidth];
        const int64_t of_bias = bias[i] == nullptr ? 0 : left;
        to_acc(load_vector<T, kAligned>(bias[i] + column * x.bias_stride, of_bias, x.bias_stride), wide);
        products[i] = bias[i] == nullptr ? A(0) : dot(other, wide);  // infinity * 0 would be NaN
      }
      dots.add(first, products);
    }
  }
}

// The token's sum to out, and products with others, of the choices in shared.
template <class T, bool kAligned>
__device__ void walk_rows(const CombineParams& p, const CombineExtras& x, int64_t token, const T* others, int count,
                          const DotShared<acc_t<T>>& shared, TokenDots<acc_t<T>>& dots) {
  constexpr int kWidth = kVector<T>;
  using A = acc_t<T>;
  for (int64_t of_block = 0; of_block < p.hidden_size; of_block += kDotThreads * kWidth) {
    const int64_t column = of_block + threadIdx.x * kWidth;
    const int64_t left = p.hidden_size - column;
    A other[kWidth], sums[kWidth] = {};
    to_acc(load_vector<T, kAligned>(others + column, x.dots != nullptr ? left : 0), other);
    for (int first = 0; first < count; first += kBatch) {
      Vector<T, kWidth> values[kBatch];
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const int64_t row = shared.rows[first + i];
        if (row < 0) continue;
        values[i] = load_vector<T, kAligned>(static_cast<const T*>(p.rows) + row * p.rows_stride + column, left);
      }
      A products[kBatch] = {};
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        if (left <= 0 || shared.rows[first + i] < 0) continue;
        A wide[kWidth];
        to_acc(values[i], wide);
#pragma unroll
        for (int j = 0; j < kWidth; ++j) sums[j] = add_product(sums[j], shared.weights[first + i], wide[j]);
        products[i] = dot(other, wide);
      }
      if (x.dots != nullptr) dots.add(first, products);
    }
    if (p.out != nullptr) {
      T* target = static_cast<T*>(p.out) + token * p.out_stride + column;
      store_vector<T, kAligned>(target, from_acc<T, kWidth>(sums), left);
    }
  }
}

template <class T, bool kAligned>
__global__ void __launch_bounds__(kDotThreads, kAligned ? 4 : 1)
    combine_with_dots_kernel(CombineParams p, CombineExtras x) {
  using A = acc_t<T>;
  __shared__ DotShared<A> shared;
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t token = blockIdx.x;
  const T* others = static_cast<const T*>(x.others) + token * x.others_stride;
  TokenDots<A> dots(shared);

  // At least once: a token without choices has a sum, too.
  for (int64_t first_k = 0; first_k == 0 || first_k < p.top_k; first_k += kDotChoices) {
    const int count = static_cast<int>(min(p.top_k - first_k, static_cast<int64_t>(kDotChoices)));
    const int64_t first_slot = token * p.top_k + first_k;
    load_choices(shared, p.slot_to_row, p.topk_weights, first_slot, count, x.num_rows);
    dots.clear();
    __syncthreads();
    if (p.out != nullptr || x.dots != nullptr) walk_rows<T, kAligned>(p, x, token, others, count, shared, dots);
    if (x.dots != nullptr) {
      __syncthreads();
      if (thread < count) {
        A* target = static_cast<A*>(x.dots) + first_slot + thread;
        *target = x.accumulate_dots ? *target + dots.total(thread) : dots.total(thread);
      }
      __syncthreads();
    }
    if (x.sums != nullptr) {
      if (x.bias != nullptr) {
        dots.clear();
        add_bias_dots<T, kAligned>(x, others, shared.rows, count, dots);
        __syncthreads();
      }
      // Rows of no expert have no partial sums, and slots that name one are no business of backward's.
      const int64_t num_valid = x.expert_offsets[x.num_experts];
#pragma unroll 1
      for (int i = thread / 32; i < count; i += kDotWarps) {
        const int64_t row = shared.rows[i];
        A sum = 0;
        if (row >= 0 && row < num_valid)
          sum = sum_in_order(static_cast<const A*>(x.partials) + row * x.num_partials, x.num_partials);
        if (x.bias != nullptr) sum += dots.total(i);
        if (thread % 32 == 0) static_cast<A*>(x.sums)[first_slot + i] = sum;
      }
    }
    __syncthreads();
  }
}

template <class T, bool kAligned>
Outcome combine(const CombineParams& p, const CombineExtras& x, Stream stream) {
  return launch("combine_with_dots", combine_with_dots_kernel<T, kAligned>, static_cast<unsigned>(p.num_tokens),
                kDotThreads, 0, stream, p, x);
}

}  // namespace

Outcome combine_with_dots(const CombineParams& p, const CombineExtras& x, Stream stream) {
  const bool has_bias = x.sums != nullptr && x.bias != nullptr;
  if (x.sums != nullptr && x.expert_offsets == nullptr) return {Status::kInvalidArgument};
  if (x.num_partials < 0 || x.num_experts < 0 || x.others_size < 0) return {Status::kInvalidArgument};
  if (has_bias && x.num_experts == 0) return {Status::kInvalidArgument};
  const bool aligned =
      is_vectorisable(p.dtype, p.rows, p.rows_stride, p.hidden_size) &&
      is_vectorisable(p.dtype, p.out, p.out_stride, p.hidden_size) &&
      (x.dots == nullptr || is_vectorisable(p.dtype, x.others, x.others_stride, p.hidden_size)) &&
      (!has_bias || (x.bias_stride == 1 && is_vectorisable(p.dtype, x.others, x.others_stride, x.others_size) &&
                     is_vectorisable(p.dtype, x.bias, x.bias_expert_stride, x.others_size)));
  return with_type(
      p.dtype, [&]<class T>(T*) { return aligned ? combine<T, true>(p, x, stream) : combine<T, false>(p, x, stream); });
}

}  // namespace moe::cuda
