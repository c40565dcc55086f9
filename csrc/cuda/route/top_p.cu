// route_top_p. Where a row fits the registers of a warp, its experts are found one by one, the best first, and no
// further than the cut, which is near: so there is one round for each expert that a token gets, not for each that it
// might. Other rows are routed in full and then cut.
#include "cuda/route/top_p.h"

#include "cuda/common/launch_kernel.cuh"
#include "cuda/route/fail.cuh"
#include "cuda/route/route.h"
#include "cuda/route/row.cuh"

namespace moe::cuda {

namespace {

using namespace routing;

constexpr int kThreads = 128, kWarps = kThreads / 32;
constexpr int64_t kMostInRegisters = 512;

__device__ inline float add(float a, float b) { return __fadd_rn(a, b); }
__device__ inline double add(double a, double b) { return __dadd_rn(a, b); }
__device__ inline float divide(float a, float b) { return __fdiv_rn(a, b); }
__device__ inline double divide(double a, double b) { return __ddiv_rn(a, b); }

// What is kept of a row, and the sum of its scores.
template <class A>
struct Kept {
  int64_t count = 0;
  A sum = 0;

  // Whether a score, the next in order, is kept.
  __device__ bool takes(A score) const { return count == 0 || score != A(0); }
  __device__ void take(A score) {
    sum = count == 0 ? score : add(sum, score);
    ++count;
  }
  // Whether another one may follow: the first always does, and NaN reaches nothing.
  __device__ bool is_open(A p, int64_t top_k) const { return count == 0 || (count < top_k && !(sum >= p)); }

  __device__ A weight(const TopPParams& params, A score) const {
    if (params.renormalize) score = divide(score, add(sum, static_cast<A>(params.eps)));
    return score * static_cast<A>(params.scale);
  }
};

// A row in the registers of a warp.
template <int kRegisters>
__global__ void __launch_bounds__(kThreads) top_p_kernel(const RouteParams route, const TopPParams params) {
  using Warp = Lanes<32>;
  // What is kept, best first.
  __shared__ float scores_of_block[kWarps][32 * kRegisters];
  __shared__ int32_t experts_of_block[kWarps][32 * kRegisters];
  float* const scores = scores_of_block[threadIdx.x / 32];
  int32_t* const experts = experts_of_block[threadIdx.x / 32];
  const int lane = Warp::lane(), num_experts = static_cast<int>(route.num_experts);
  const int64_t token = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (token >= params.num_tokens) return;

  Row<32, kRegisters> row;
  row.load(route.dtype, route.logits, token * route.logits_stride, num_experts);
  bool alive = true;
  if (route.rule.nonfinite != NonFinite::kPropagate) {
    const bool bad = Warp::any(row.sanitize() != 0);
    alive = row.maximum() > -infinity(float());
    if (route.rule.nonfinite == NonFinite::kError && (bad || !alive)) fail_on_nonfinite();
  }
  row.score(route.rule, scores);
  __syncwarp();

  int32_t keys[kRegisters], best = KeyOf<float>::kLowest;
#pragma unroll
  for (int r = 0; r < kRegisters; ++r) {
    keys[r] = row.expert(r) < num_experts ? rank(row.values[r]) : KeyOf<float>::kLowest;
    best = max(best, keys[r]);
  }
  const float p = static_cast<float>(params.p);
  Kept<float> kept;
  while (alive && kept.is_open(p, params.top_k)) {
    const int32_t largest = Warp::maximum(best);
    const float score = value_of(largest);
    if (!kept.takes(score)) break;
    int32_t expert = INT32_MAX;
#pragma unroll
    for (int r = kRegisters - 1; r >= 0; --r) expert = keys[r] == largest ? row.expert(r) : expert;
    expert = Warp::minimum(expert);
    if (lane == 0) {
      scores[kept.count] = score;
      experts[kept.count] = expert;
    }
    kept.take(score);
    best = KeyOf<float>::kLowest;
#pragma unroll
    for (int r = 0; r < kRegisters; ++r) {
      if (row.expert(r) == expert) keys[r] = KeyOf<float>::kLowest;
      best = max(best, keys[r]);
    }
  }
  __syncwarp();

  float* weights = static_cast<float*>(params.topk_weights) + token * params.top_k;
  int32_t* ids = params.topk_ids + token * params.top_k;
  for (int64_t k = lane; k < params.top_k; k += 32) {
    weights[k] = k < kept.count ? kept.weight(params, scores[k]) : 0.0f;
    ids[k] = k < kept.count ? experts[k] : -1;
  }
}

// Cuts rows that route has ordered. A warp takes 32 tokens: each lane adds up one of them, since the sum has an order,
// then all lanes write one row after the other.
template <class A>
__global__ void __launch_bounds__(kThreads, 1) cut_at_top_p_kernel(const TopPParams params) {
  const int lane = threadIdx.x % 32;
  const int64_t first = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) - lane;
  const int64_t top_k = params.top_k;
  A* const all_weights = static_cast<A*>(params.topk_weights);
  const A p = static_cast<A>(params.p);

  Kept<A> own;
  if (first + lane < params.num_tokens) {
    const A* weights = all_weights + (first + lane) * top_k;
    while (own.is_open(p, top_k) && own.takes(weights[own.count])) own.take(weights[own.count]);
  }
  __syncwarp();

  for (int row = 0; row < 32 && first + row < params.num_tokens; ++row) {
    const Kept<A> kept = {__shfl_sync(kWholeWarp, own.count, row), __shfl_sync(kWholeWarp, own.sum, row)};
    A* weights = all_weights + (first + row) * top_k;
    int32_t* ids = params.topk_ids + (first + row) * top_k;
    for (int64_t k = lane; k < top_k; k += 32) {
      // A row that chose nobody has weights of 0, and keeps them whatever eps is.
      const bool chosen = k < kept.count && ids[k] >= 0;
      weights[k] = chosen ? kept.weight(params, weights[k]) : A(0);
      if (!chosen) ids[k] = -1;
    }
  }
}

bool fits_registers(const RouteParams& route) {
  return route.dtype != DType::kFloat64 && route.num_experts <= kMostInRegisters;
}

template <int kRegisters>
Outcome in_registers(const RouteParams& route, const TopPParams& p, Stream stream) {
  const int64_t blocks = (p.num_tokens + kWarps - 1) / kWarps;
  if (blocks > INT32_MAX) return {Status::kUnsupported, 0, "route_top_p"};
  return launch("route_top_p", top_p_kernel<kRegisters>, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), 0, stream,
                route, p);
}

Outcome cut(const TopPParams& p, Stream stream) {
  const int64_t blocks = (p.num_tokens + kThreads - 1) / kThreads;
  if (blocks > INT32_MAX) return {Status::kUnsupported, 0, "cut_at_top_p"};
  const auto kernel = p.dtype == DType::kFloat64 ? cut_at_top_p_kernel<double> : cut_at_top_p_kernel<float>;
  return launch("cut_at_top_p", kernel, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), 0, stream, p);
}

}  // namespace

int64_t route_top_p_workspace_bytes(const RouteParams& route) {
  return fits_registers(route) ? 0 : route_forward_workspace_bytes(route);
}

Outcome route_top_p(const RouteParams& route, const TopPParams& p, void* workspace, Stream stream) {
  if (p.num_tokens < 0 || p.top_k < 1 || p.top_k > route.num_experts || route.top_k != p.top_k ||
      route.num_tokens != p.num_tokens) {
    return {Status::kInvalidArgument, 0, "route_top_p"};
  }
  if (fits_registers(route)) {
    if (route.num_experts <= 32) return in_registers<1>(route, p, stream);
    if (route.num_experts <= 64) return in_registers<2>(route, p, stream);
    if (route.num_experts <= 128) return in_registers<4>(route, p, stream);
    if (route.num_experts <= 256) return in_registers<8>(route, p, stream);
    return in_registers<16>(route, p, stream);
  }
  const Outcome routed = route_forward(route, workspace, stream);
  return routed.ok() ? cut(p, stream) : routed;
}

}  // namespace moe::cuda
