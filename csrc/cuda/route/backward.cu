// The gradient of route for rows that fit the registers of a warp: logits [T,E], ids and gradients [T,K] -> grad_logits
// [T,E], E <= 512, K <= 32. The scores are computed again.
//
// Threads and registers hold a row as in forward, lane k a choice. The choices' contributions meet their experts in
// shared memory, where those of an id that stands twice are added in the order of k. Every entry of the result is
// written once. Scores that look at one logit alone need only the chosen logits, and read no others.
#include "cuda/route/backward.h"

#include "cuda/common/launch_kernel.cuh"
#include "cuda/route/choices.cuh"
#include "cuda/route/row.cuh"

namespace moe::cuda::routing {

namespace {

constexpr int kThreads = 128;

template <class T, int kLanes, int kRegisters>
__device__ void store(T* row, int num_experts, const float (&values)[kRegisters]) {
#pragma unroll
  for (int r = 0; r < kRegisters; ++r) {
    const int expert = Row<kLanes, kRegisters>::expert(r);
    if (expert < num_experts) row[expert] = from_acc<T>(values[r]);
  }
}

// row[id] of lane k += contribution, in the order of k.
template <int kLanes>
__device__ void scatter(float* row, int row_of_warp, int top_k, bool valid, int32_t id, float contribution) {
  // Lanes whose partner is none get a number of their own.
  const int32_t target = valid ? id * (32 / kLanes) + row_of_warp : -1 - static_cast<int32_t>(threadIdx.x % 32);
  const bool repeated = __popc(__match_any_sync(kWholeWarp, target)) > 1;
  if (!Lanes<32>::any(repeated)) {
    if (valid) row[id] = contribution;
    return;
  }
  for (int k = 0; k < top_k; ++k) {
    if (valid && Lanes<kLanes>::lane() == k) row[id] += contribution;
    __syncwarp();
  }
}

template <int kLanes>
__device__ ChoiceSums<float> sum_choices(const RouteRule& rule, const Choice<float>& choice) {
  using Group = Lanes<kLanes>;
  ChoiceSums<float> sums;
  sums.scores = Group::sum(choice.score) + static_cast<float>(rule.eps);
  if (rule.renormalize) sums.mean_gradient = Group::sum(choice.grad * choice.score) / sums.scores;
  if (rule.score == Score::kSoftmax) {
    sums.inner_product = Group::sum(choice.valid ? sums.score_gradient(rule, choice) * choice.score : 0.0f);
  }
  return sums;
}

// row += the gradient of score_sums, for scores that look at one logit alone.
template <int kLanes, class Logit>
__device__ void add_score_sums(const RouteRule& rule, int num_experts, const float* grad, const Logit& raw_logit,
                               float* row) {
  using Group = Lanes<kLanes>;
  const bool sanitize = rule.nonfinite == NonFinite::kSanitize;
  float total = 0.0f, product = 0.0f;
  Group::for_each(num_experts, [&](int64_t i) {
    const float raw = raw_logit(i), s = score_of(rule.score, sanitize ? sanitized(raw) : raw);
    total += s;
    product += grad[i] * s;
  });
  StatisticsGradient<float> statistics;
  statistics.score_sum = Group::sum(total);
  statistics.inner_product = Group::sum(product) / statistics.score_sum;
  Group::for_each(num_experts, [&](int64_t i) {
    const float z = raw_logit(i);
    if (sanitize && !(z < infinity(float()))) return;
    row[i] += statistics.by_logit(rule.score, z, score_of(rule.score, z), grad[i]);
  });
}

template <int kLanes, int kRegisters>
__global__ void __launch_bounds__(kThreads, 1) route_backward_kernel(const RouteBackwardParams p) {
  using Group = Lanes<kLanes>;
  constexpr int kRows = kThreads / kLanes, kWidth = kLanes * kRegisters;
  __shared__ float shared[kRows][kWidth];

  const int lane = Group::lane(), row_of_block = threadIdx.x / kLanes;
  const int num_experts = static_cast<int>(p.num_experts), top_k = static_cast<int>(p.top_k);
  float* shared_row = shared[row_of_block];
  const int64_t token = static_cast<int64_t>(blockIdx.x) * kRows + row_of_block;
  const bool inside = token < p.num_tokens;
  const int64_t first_logit = token * p.logits_stride;
  const RouteRule& rule = p.rule;
  const bool sanitize = rule.nonfinite == NonFinite::kSanitize;
  const bool softmax_before = rule.score == Score::kSoftmax && !rule.softmax_after;
  const bool of_scores = p.grad_score_sums != nullptr, of_z = p.grad_z_sum != nullptr;
  const bool needs_softmax = softmax_before || of_z || (rule.softmax_after && of_scores);
  const auto raw_logit = [&](int64_t i) { return load_logit<float>(p.dtype, p.logits, first_logit + i); };

  Choice<float> choice = {};
  int32_t id = -1;
  if (inside && lane < top_k) {
    id = p.topk_ids[token * top_k + lane];
    choice.grad = static_cast<const float*>(p.grad_weights)[token * top_k + lane] * static_cast<float>(rule.scale);
  }
  choice.valid = id >= 0 && id < num_experts;
  const bool any_valid = Group::any(choice.valid);

  // Logits, then exponentials.
  Row<kLanes, kRegisters> row = {};
  Softmax<float> softmax;
  uint32_t replaced = 0;
  if (needs_softmax) {
    row.load(p.dtype, p.logits, first_logit, any_valid ? num_experts : 0);
    if (sanitize) replaced = row.sanitize();
    row.to_memory(shared_row);
    softmax = row.exponentiate();
    __syncwarp();
  }

  bool choice_replaced = false;
  if (choice.valid) {
    const float z = needs_softmax ? shared_row[id] : raw_logit(id);
    choice_replaced = sanitize && !(z < infinity(float()));
    choice.z = sanitize ? sanitized(z) : z;
  }
  if (rule.score == Score::kSoftmax) {
    Softmax<float> over = softmax;
    if (rule.softmax_after) {
      over.maximum = Group::maximum(choice.valid ? choice.z : -infinity(float()));
      over.sum = Group::sum(choice.valid ? exp_below(choice.z - over.maximum) : 0.0f);
    }
    choice.score = over.probability(choice.z);
  } else {
    choice.score = score_of(rule.score, choice.z);
  }
  if (!choice.valid) choice.score = choice.grad = 0.0f;
  const ChoiceSums<float> sums = sum_choices<kLanes>(rule, choice);

  __syncwarp();
#pragma unroll
  for (int r = 0; r < kRegisters; ++r) shared_row[row.expert(r)] = 0.0f;
  __syncwarp();
  scatter<kLanes>(shared_row, row_of_block % (32 / kLanes), top_k, choice.valid && !choice_replaced, id,
                  sums.contribution(rule, choice));
  __syncwarp();
  if (of_scores && rule.score != Score::kSoftmax) {
    add_score_sums<kLanes>(rule, any_valid ? num_experts : 0, static_cast<const float*>(p.grad_score_sums), raw_logit,
                           shared_row);
  }

  const float by_z = of_z ? 2.0f * softmax.z_slope(rule.nonfinite) * *static_cast<const float*>(p.grad_z_sum) : 0.0f;
  const float inverse = 1.0f / softmax.sum;
  float grad[kRegisters];
#pragma unroll
  for (int r = 0; r < kRegisters; ++r) grad[r] = shared_row[row.expert(r)];
  if (needs_softmax) {
    float sum_gradients[kRegisters] = {}, inner_product = 0.0f;
    if (of_scores && rule.score == Score::kSoftmax) {
#pragma unroll
      for (int r = 0; r < kRegisters; ++r) {
        const int expert = row.expert(r);
        if (expert < num_experts) sum_gradients[r] = static_cast<const float*>(p.grad_score_sums)[expert];
        inner_product += sum_gradients[r] * (row.values[r] * inverse);
      }
      inner_product = Group::sum(inner_product);
    }
    const float constant = by_z - inner_product - (softmax_before ? sums.inner_product : 0.0f);
#pragma unroll
    for (int r = 0; r < kRegisters; ++r) {
      const float by_probability = sum_gradients[r] + constant;
      const float probability = row.values[r] * inverse;
      grad[r] = softmax_before ? probability * (grad[r] + by_probability) : grad[r] + probability * by_probability;
    }
  }
#pragma unroll
  for (int r = 0; r < kRegisters; ++r) {
    if ((replaced >> r & 1) != 0 || !any_valid) grad[r] = 0.0f;
  }
  if (!inside) return;
  const int64_t first = token * p.num_experts;
  switch (p.dtype) {
    case DType::kBFloat16:
      return store<__nv_bfloat16, kLanes>(static_cast<__nv_bfloat16*>(p.grad_logits) + first, num_experts, grad);
    case DType::kFloat16:
      return store<__half, kLanes>(static_cast<__half*>(p.grad_logits) + first, num_experts, grad);
    default:
      return store<float, kLanes>(static_cast<float*>(p.grad_logits) + first, num_experts, grad);
  }
}

template <int kLanes, int kRegisters>
Outcome start(const RouteBackwardParams& p, Stream stream) {
  constexpr int kRows = kThreads / kLanes;
  const int64_t blocks = (p.num_tokens + kRows - 1) / kRows;
  return launch("route_backward", route_backward_kernel<kLanes, kRegisters>, dim3(static_cast<uint32_t>(blocks)),
                dim3(kThreads), 0, stream, p);
}

}  // namespace

bool fits_registers(const RouteBackwardParams& p) {
  return p.dtype != DType::kFloat64 && p.num_experts <= 512 && p.top_k <= 32 && p.num_tokens <= INT32_MAX;
}

Outcome backward_in_registers(const RouteBackwardParams& p, Stream stream) {
  const int64_t widest = p.num_experts > p.top_k ? p.num_experts : p.top_k;
  if (widest <= 8) return start<8, 1>(p, stream);
  if (widest <= 16) return start<16, 1>(p, stream);
  if (widest <= 32) return start<32, 1>(p, stream);
  if (widest <= 64) return start<32, 2>(p, stream);
  if (widest <= 128) return start<32, 4>(p, stream);
  if (widest <= 192) return start<32, 6>(p, stream);
  if (widest <= 256) return start<32, 8>(p, stream);
  if (widest <= 384) return start<32, 12>(p, stream);
  return start<32, 16>(p, stream);
}

}  // namespace moe::cuda::routing
