// A row of logits in the registers of a warp, or of a part of one: expert i stands in register i / kLanes of lane
// i % kLanes. That is also how csrc/cpu/vectorized/route_forward.h spreads a row over its 32 running sums, so sums have
// the same bits. All lanes of the warp call these functions together.
#pragma once

#include "cuda/common/numeric.cuh"
#include "cuda/route/math.cuh"

namespace moe::cuda::routing {

constexpr uint32_t kWholeWarp = 0xffffffff;

// kLanes consecutive lanes of a warp, 8, 16 or 32, and what they decide together.
template <int kLanes>
struct Lanes {
  __device__ static int lane() { return static_cast<int>(threadIdx.x % kLanes); }

  // One bit for each of these lanes.
  __device__ static uint32_t ballot(bool condition) {
    const uint32_t all = __ballot_sync(kWholeWarp, condition);
    if constexpr (kLanes == 32) return all;
    return (all >> (threadIdx.x % 32 / kLanes * kLanes)) & ((1u << (kLanes % 32)) - 1);
  }
  __device__ static bool any(bool condition) { return ballot(condition) != 0; }

  __device__ static int32_t maximum(int32_t x) {
    if constexpr (kLanes == 32) {
      return __reduce_max_sync(kWholeWarp, x);
    } else {
#pragma unroll
      for (int step = kLanes / 2; step > 0; step /= 2) x = max(x, __shfl_xor_sync(kWholeWarp, x, step));
      return x;
    }
  }
  __device__ static int64_t maximum(int64_t x) {
#pragma unroll
    for (int step = kLanes / 2; step > 0; step /= 2) {
      const int64_t other = __shfl_xor_sync(kWholeWarp, x, step);
      x = other > x ? other : x;
    }
    return x;
  }
  __device__ static int32_t minimum(int32_t x) {
    if constexpr (kLanes == 32) {
      return __reduce_min_sync(kWholeWarp, x);
    } else {
#pragma unroll
      for (int step = kLanes / 2; step > 0; step /= 2) x = min(x, __shfl_xor_sync(kWholeWarp, x, step));
      return x;
    }
  }
  // The largest. NaN may be passed over: what is done with the result afterwards sees it too.
  __device__ static float maximum(float x) { return value_of(maximum(order(__float_as_int(x)))); }
  __device__ static double maximum(double x) {
#pragma unroll
    for (int step = kLanes / 2; step > 0; step /= 2) x = fmax(x, __shfl_xor_sync(kWholeWarp, x, step));
    return x;
  }

  template <class A>
  __device__ static A sum(A x) {
#pragma unroll
    for (int step = kLanes / 2; step > 0; step /= 2) x += __shfl_xor_sync(kWholeWarp, x, step);
    return x;
  }
  // x of lanes 0 .. count - 1, added one after the other.
  template <class A>
  __device__ static A sum_in_order(A x, int count) {
    A sum = 0;
    for (int k = 0; k < count; ++k) sum += from(x, k);
    return sum;
  }
  template <class A>
  __device__ static A from(A x, int lane) {
    return __shfl_sync(kWholeWarp, x, lane, kLanes);
  }
};

// Where NaN, +inf or nothing but -inf stood in a row.
struct RowState {
  bool bad;    // something to replace
  bool alive;  // something to choose
};

template <int kLanes, int kRegisters>
struct Row {
  using Group = Lanes<kLanes>;

  float z[kRegisters];

  __device__ static int expert(int r) { return r * kLanes + Group::lane(); }

  // -inf past num_experts, which nothing below can tell from an expert that is masked.
  __device__ void load(DType dtype, const void* logits, int64_t first, int num_experts) {
    switch (dtype) {
      case DType::kBFloat16:
        return load(static_cast<const __nv_bfloat16*>(logits) + first, num_experts);
      case DType::kFloat16:
        return load(static_cast<const __half*>(logits) + first, num_experts);
      default:
        return load(static_cast<const float*>(logits) + first, num_experts);
    }
  }

  __device__ RowState sanitize() {
    bool bad = false, alive = false;
#pragma unroll
    for (int r = 0; r < kRegisters; ++r) {
      bad |= !(z[r] < infinity(float()));
      z[r] = sanitized(z[r]);
      alive |= z[r] > -infinity(float());
    }
    return {Group::any(bad), Group::any(alive)};
  }

  __device__ float maximum() const {
    float largest = z[0];
#pragma unroll
    for (int r = 1; r < kRegisters; ++r) largest = fmaxf(largest, z[r]);
    return Group::maximum(largest);
  }

  __device__ static float sum(const float (&values)[kRegisters]) {
    float sum = values[0];
#pragma unroll
    for (int r = 1; r < kRegisters; ++r) sum += values[r];
    return Group::sum(sum);
  }

  // e = e^(z - maximum); returns their sum.
  __device__ float exponentials(float maximum, float (&e)[kRegisters]) const {
#pragma unroll
    for (int r = 0; r < kRegisters; ++r) e[r] = exp_of(__fsub_rn(z[r], maximum));
    return sum(e);
  }

  __device__ static void divide(float (&values)[kRegisters], float divisor) {
    const Divide<float> divided(divisor);
    bool care = false;
#pragma unroll
    for (int r = 0; r < kRegisters; ++r) care |= Divide<float>::needs_care(values[r]);
    if (Lanes<32>::any(care)) {
#pragma unroll
      for (int r = 0; r < kRegisters; ++r) values[r] = divided(values[r]);
    } else {
#pragma unroll
      for (int r = 0; r < kRegisters; ++r) values[r] = divided.fast(values[r]);
    }
  }

 private:
  template <class T>
  __device__ void load(const T* row, int num_experts) {
#pragma unroll
    for (int r = 0; r < kRegisters; ++r) {
      z[r] = expert(r) < num_experts ? to_acc(row[expert(r)]) : -infinity(float());
    }
  }
};

}  // namespace moe::cuda::routing
