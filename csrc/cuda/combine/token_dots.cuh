// Dot products of one token's vector with its rows, by a block per token: what the gradient of combine and the walk of
// combine with dots share.
//
// Rows come in batches of four. After each vector of columns the four products of a warp's lanes are summed and added
// to shared memory, so that the number of choices costs no registers.
#pragma once

#include "cuda/combine/row_types.cuh"

namespace moe::cuda {

constexpr int kDotThreads = 128;
constexpr int kDotWarps = kDotThreads / 32;
constexpr int kDotChoices = 64;  // whose sums stand in shared memory at once
static_assert(kDotChoices <= kDotThreads);
constexpr int kBatch = 4;

template <class A>
struct DotShared {
  int32_t rows[kDotChoices];  // -1: none
  A weights[kDotChoices];
  A dots[kDotWarps][kDotChoices];
};

// Sums each of four values over the warp; lane i gets the sum of value i % 4.
template <class A>
__device__ A warp_sum_of_four(const A (&values)[kBatch]) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const auto add_halves = [&](A even, A odd, int distance) {
    const bool is_odd = (lane & distance) != 0;
    return (is_odd ? odd : even) + __shfl_xor_sync(0xffffffffu, is_odd ? even : odd, distance);
  };
  A sum = add_halves(add_halves(values[0], values[1], 1), add_halves(values[2], values[3], 1), 2);
#pragma unroll
  for (int distance = 4; distance < 32; distance *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, distance);
  return sum;
}

// The dot products of `count` choices, from the first on. All threads of the block call all of it.
template <class A>
class TokenDots {
 public:
  __device__ explicit TokenDots(DotShared<A>& shared) : own_(shared.dots[threadIdx.x / 32]), shared_(shared) {}

  // Each lane clears what it will add to, so no other thread has to wait.
  __device__ void clear() {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    if (lane >= kBatch) return;
    for (int choice = lane; choice < kDotChoices; choice += kBatch) own_[choice] = 0;
  }

  // Adds the block's products with the choices first .. first + 3.
  __device__ void add(int first, const A (&products)[kBatch]) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const A sum = warp_sum_of_four(products);
    if (lane < kBatch) own_[first + lane] += sum;
  }

  // After a __syncthreads(): the whole sum of one choice.
  __device__ A total(int choice) const {
    A sum = 0;
#pragma unroll
    for (int warp = 0; warp < kDotWarps; ++warp) sum += shared_.dots[warp][choice];
    return sum;
  }

 private:
  A (&own_)[kDotChoices];
  DotShared<A>& shared_;
};

// <a, b> of two vectors, one product after the other.
template <class A, int kWidth>
__device__ A dot(const A (&a)[kWidth], const A (&b)[kWidth]) {
  A sum = 0;
#pragma unroll
  for (int i = 0; i < kWidth; ++i) sum += a[i] * b[i];
  return sum;
}

// Rows and weights of the choices first_slot .. first_slot + count.
template <class A>
__device__ void load_choices(DotShared<A>& shared, const int32_t* slot_to_row, const void* topk_weights,
                             int64_t first_slot, int count, int64_t num_rows) {
  const int i = static_cast<int>(threadIdx.x);
  if (i >= kDotChoices) return;
  const bool exists = i < count;
  shared.rows[i] = exists ? static_cast<int32_t>(existing_row(slot_to_row[first_slot + i], num_rows)) : -1;
  shared.weights[i] = exists && topk_weights != nullptr ? static_cast<const A*>(topk_weights)[first_slot + i] : A(1);
}

}  // namespace moe::cuda
