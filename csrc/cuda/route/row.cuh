// A row of logits in the registers of a warp, or of a part of one: expert i stands in register i / kLanes of lane
// i % kLanes. That is also how csrc/cpu/vectorized/route_forward.h spreads a row over its 32 running sums, so sums have
// the same bits. All lanes of the warp call these functions together.
//
// What only few rules need runs as a short loop over memory instead, to keep kernels small.
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
  __device__ static int32_t minimum(int32_t x) { return ~maximum(~x); }
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

  // body(i) for i = lane, lane + kLanes, ...
  template <class Body>
  __device__ static void for_each(int64_t count, const Body& body) {
#pragma unroll 1
    for (int64_t i = lane(); i < count; i += kLanes) body(i);
  }
};

template <class A>
__device__ A load_logit(DType dtype, const void* logits, int64_t place) {
  if constexpr (sizeof(A) == 8) {
    return static_cast<const double*>(logits)[place];
  } else {
    if (dtype == DType::kBFloat16) return to_acc(static_cast<const __nv_bfloat16*>(logits)[place]);
    if (dtype == DType::kFloat16) return to_acc(static_cast<const __half*>(logits)[place]);
    return static_cast<const float*>(logits)[place];
  }
}

// What the softmax of a row is made of.
template <class A>
struct Softmax {
  A maximum = 0, sum = 1;

  __device__ A probability(A z) const { return exp_below(z - maximum) / sum; }

  // Of what logit(i) returns for each i.
  template <int kLanes, class Logit>
  __device__ static Softmax of(int64_t count, const Logit& logit) {
    using Group = Lanes<kLanes>;
    A maximum = -infinity(A()), sum = 0;
    Group::for_each(count, [&](int64_t i) { maximum = fmax(maximum, logit(i)); });
    maximum = Group::maximum(maximum);
    Group::for_each(count, [&](int64_t i) { sum += exp_below(logit(i) - maximum); });
    return {maximum, Group::sum(sum)};
  }

  // The square of log(sum e^z), or 0 for a sanitized row whose square is not finite.
  __device__ A z_square(NonFinite nonfinite) const {
    const A lse = maximum + log(sum), square = lse * lse;
    return nonfinite == NonFinite::kSanitize && !(square < infinity(A())) ? A(0) : square;
  }
  // Half its derivative by a logit, divided by that logit's probability.
  __device__ A z_slope(NonFinite nonfinite) const {
    const A lse = maximum + log(sum);
    return nonfinite == NonFinite::kSanitize && !(lse * lse < infinity(A())) ? A(0) : lse;
  }
};

template <int kLanes, int kRegisters>
struct Row {
  using Group = Lanes<kLanes>;

  float values[kRegisters];

  __device__ static int expert(int r) { return r * kLanes + Group::lane(); }

  // Logits; -inf past num_experts, which nothing below can tell from an expert that is masked.
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

  // NaN and +inf are replaced. Returns a bit for each register: whether its was.
  __device__ uint32_t sanitize() {
    uint32_t replaced = 0;
#pragma unroll
    for (int r = 0; r < kRegisters; ++r) {
      replaced |= values[r] < infinity(float()) ? 0 : 1u << r;
      values[r] = sanitized(values[r]);
    }
    return replaced;
  }

  __device__ void to_memory(float* row) const {
#pragma unroll
    for (int r = 0; r < kRegisters; ++r) row[expert(r)] = values[r];
  }
  __device__ void from_memory(const float* row) {
#pragma unroll
    for (int r = 0; r < kRegisters; ++r) values[r] = row[expert(r)];
  }

  __device__ float maximum() const {
    float largest = values[0];
#pragma unroll
    for (int r = 1; r < kRegisters; ++r) largest = fmaxf(largest, values[r]);
    return Group::maximum(largest);
  }

  __device__ float sum() const {
    float sum = values[0];
#pragma unroll
    for (int r = 1; r < kRegisters; ++r) sum += values[r];
    return Group::sum(sum);
  }

  // Logits become e^(z - maximum).
  __device__ Softmax<float> exponentiate() {
    const float largest = maximum();
#pragma unroll
    for (int r = 0; r < kRegisters; ++r) values[r] = exp_below(values[r] - largest);
    return {largest, sum()};
  }

  // Logits become scores, none of which is a softmax over a part. memory: a row of shared memory.
  __device__ Softmax<float> score(const RouteRule& rule, float* memory) {
    if (rule.softmax_after || rule.score == Score::kNone) return {};
    if (rule.score == Score::kSqrtSoftplus) {
      in_memory(memory, [](float z) { return sqrt_softplus(z); });
      return {};
    }
    const bool is_softmax = rule.score == Score::kSoftmax;
    const float largest = is_softmax ? maximum() : 0.0f;
    if (is_softmax) {
#pragma unroll
      for (int r = 0; r < kRegisters; ++r) values[r] -= largest;
    } else {
#pragma unroll
      for (int r = 0; r < kRegisters; ++r) values[r] = sigmoid_exponent(values[r]);
    }
#pragma unroll
    for (int r = 0; r < kRegisters; ++r) values[r] = exp_below(values[r]);
    if (!is_softmax) {
#pragma unroll
      for (int r = 0; r < kRegisters; ++r) values[r] = sigmoid_of_exp(values[r]);
      return {};
    }
    const float total = sum();
    const DivideBy divided(total);
    bool care = false;
#pragma unroll
    for (int r = 0; r < kRegisters; ++r) care |= DivideBy::needs_care(values[r]);
    if (Lanes<32>::any(care)) {
      in_memory(memory, divided);
    } else {
#pragma unroll
      for (int r = 0; r < kRegisters; ++r) values[r] = divided.fast(values[r]);
    }
    return {largest, total};
  }

 private:
  template <class T>
  __device__ void load(const T* row, int num_experts) {
#pragma unroll
    for (int r = 0; r < kRegisters; ++r) {
      values[r] = expert(r) < num_experts ? to_acc(row[expert(r)]) : -infinity(float());
    }
  }

  template <class Function>
  __device__ void in_memory(float* memory, const Function& function) {
    to_memory(memory);
    Group::for_each(kLanes * kRegisters, [&](int64_t i) { memory[i] = function(memory[i]); });
    from_memory(memory);
  }
};

}  // namespace moe::cuda::routing
