// route for rows that fit the registers of a warp: logits [T,E] -> weights, ids [T,K], E <= 512, K <= 32.
//
// One row for each warp, or for 8 or 16 lanes of one where there are that few experts; expert i in register i / lanes
// of lane i % lanes, so every load is whole and each logit is read once. Choice k ends up in lane k. With statistics a
// block takes a chunk of tokens: after each step its threads add the rows, which stand in shared memory anyway, in the
// order of the tokens.
#include "cuda/common/fast_divide.h"
#include "cuda/common/launch_kernel.cuh"
#include "cuda/route/fail.cuh"
#include "cuda/route/forward.h"
#include "cuda/route/groups.cuh"
#include "cuda/route/row.cuh"
#include "cuda/route/select.cuh"

namespace moe::cuda::routing {

namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / 32;
// As many as the largest rows allow. Left to itself, ptxas spills to fit one more.
constexpr int kBlocksPerMultiprocessor = 6;

struct Schedule {
  int64_t tokens_per_block;
  bool group_wise;
  Groups groups;
  FastDivide by_group_size;
};

template <int kLanes, int kRegisters>
struct Shared {
  static constexpr int kRows = kThreads / kLanes;
  static constexpr int kWidth = kLanes * kRegisters;

  float rows[kRows][kWidth];
  Candidate candidates[kRegisters > 1 ? kWarps : 1][32];
  int32_t counts[kWidth];
  float z_squares[kRows];
};

template <int kRegisters>
__device__ void keep_best_groups(const Schedule& schedule, int num_experts, int32_t (&keys)[kRegisters],
                                 int32_t* row_keys) {
  const int lane = threadIdx.x % 32;
  int32_t* group_keys = row_keys + 32 * kRegisters;
  __syncwarp();
#pragma unroll
  for (int r = 0; r < kRegisters; ++r) row_keys[r * 32 + lane] = keys[r];
  __syncwarp();
  score_groups<float>(schedule.groups, row_keys, group_keys);
  __syncwarp();
  const Place<float> last_kept = last_kept_group<float>(schedule.groups, group_keys);
#pragma unroll
  for (int r = 0; r < kRegisters; ++r) {
    const int expert = r * 32 + lane;
    if (expert >= num_experts) continue;
    keys[r] = filtered<float>(schedule.groups, last_kept, group_keys, schedule.by_group_size(expert), keys[r]);
  }
}

// The weight of choice k in lane k, from its score.
template <int kLanes>
__device__ float weigh(const RouteRule& rule, float score, int top_k) {
  using Group = Lanes<kLanes>;
  const bool chosen = Group::lane() < top_k;
  if (rule.softmax_after) {
    const float e = exp_below(score - Group::maximum(chosen ? score : -infinity(float())));
    score = e / Group::sum_in_order(e, top_k);
  }
  if (rule.renormalize) score = score / (Group::sum_in_order(score, top_k) + static_cast<float>(rule.eps));
  return score * static_cast<float>(rule.scale);
}

// Replaces the row's scores in shared memory by what is added up, and returns the square of logsumexp.
template <int kLanes>
__device__ float prepare_statistics(const RouteParams& p, int64_t first_logit, bool alive, Softmax<float> softmax,
                                    float* shared_row) {
  using Group = Lanes<kLanes>;
  const int64_t num_experts = p.num_experts;
  const auto logit = [&](int64_t i) {
    const float z = load_logit<float>(p.dtype, p.logits, first_logit + i);
    return p.rule.nonfinite == NonFinite::kPropagate ? z : sanitized(z);
  };
  if (p.statistics.score_sums != nullptr && p.rule.score != Score::kSoftmax) {
    float sum = 0.0f;
    Group::for_each(num_experts, [&](int64_t i) { sum += shared_row[i]; });
    sum = at_least_tiny(Group::sum(sum));
    Group::for_each(num_experts, [&](int64_t i) { shared_row[i] /= sum; });
  }
  if (p.rule.softmax_after || (p.statistics.z_sum != nullptr && p.rule.score != Score::kSoftmax)) {
    softmax = Softmax<float>::of<kLanes>(alive ? num_experts : 0, logit);
    if (p.rule.softmax_after && alive) {
      Group::for_each(num_experts, [&](int64_t i) { shared_row[i] = softmax.probability(logit(i)); });
    }
  }
  if (alive) return softmax.z_square(p.rule.nonfinite);
  Group::for_each(num_experts, [&](int64_t i) { shared_row[i] = 0.0f; });
  return 0.0f;
}

template <int kLanes, int kRegisters>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor)
    route_forward_kernel(const RouteParams p, const Schedule schedule) {
  using Group = Lanes<kLanes>;
  using SharedRows = Shared<kLanes, kRegisters>;
  constexpr int kRows = SharedRows::kRows, kWidth = SharedRows::kWidth;
  constexpr int kExpertsPerThread = (kWidth + kThreads - 1) / kThreads;
  __shared__ SharedRows shared;
  extern __shared__ int32_t group_memory[];

  const int lane = Group::lane(), row_of_block = threadIdx.x / kLanes, warp = threadIdx.x / 32;
  const int num_experts = static_cast<int>(p.num_experts), top_k = static_cast<int>(p.top_k);
  float* shared_row = shared.rows[row_of_block];
  const bool statistics =
      p.statistics.score_sums != nullptr || p.statistics.expert_counts != nullptr || p.statistics.z_sum != nullptr;
  float score_sums[kExpertsPerThread] = {}, z_sum = 0.0f;
  if (statistics) {
    for (int i = threadIdx.x; i < kWidth; i += kThreads) shared.counts[i] = 0;
    __syncthreads();
  }

  const int64_t first_token = blockIdx.x * schedule.tokens_per_block;
  for (int64_t step = 0; step < schedule.tokens_per_block && first_token + step < p.num_tokens; step += kRows) {
    const int64_t token = first_token + step + row_of_block;
    const bool inside = token < p.num_tokens;
    bool alive = inside;

    Row<kLanes, kRegisters> row;
    row.load(p.dtype, p.logits, token * p.logits_stride, inside ? num_experts : 0);
    if (p.rule.nonfinite != NonFinite::kPropagate) {
      const bool bad = Group::any(row.sanitize() != 0);
      alive = row.maximum() > -infinity(float());
      if (p.rule.nonfinite == NonFinite::kError && inside && (bad || !alive)) fail_on_nonfinite();
    }

    const Softmax<float> softmax = row.score(p.rule, shared_row);
    row.to_memory(shared_row);
    int32_t keys[kRegisters];
#pragma unroll
    for (int r = 0; r < kRegisters; ++r) {
      const int expert = row.expert(r);
      const float bias = p.bias != nullptr && expert < num_experts ? p.bias[expert] : 0.0f;
      keys[r] = expert < num_experts ? rank(row.values[r], bias) : KeyOf<float>::kLowest;
    }
    if constexpr (kLanes == 32) {
      if (schedule.group_wise) {
        int32_t* row_keys = group_memory + warp * (kWidth + schedule.groups.count);
        keep_best_groups(schedule, num_experts, keys, row_keys);
      }
    }
    const int32_t expert = select<kLanes>(keys, top_k, shared.candidates[kRegisters > 1 ? warp : 0]);
    __syncwarp();
    const float weight = weigh<kLanes>(p.rule, lane < top_k ? shared_row[expert] : 0.0f, top_k);
    if (inside && lane < top_k) {
      static_cast<float*>(p.topk_weights)[token * top_k + lane] = alive ? weight : 0.0f;
      p.topk_ids[token * top_k + lane] = alive ? expert : -1;
    }

    if (statistics) {
      if (alive && lane < top_k) atomicAdd(&shared.counts[expert], 1);
      __syncwarp();
      const float z_square = prepare_statistics<kLanes>(p, token * p.logits_stride, alive, softmax, shared_row);
      if (lane == 0) shared.z_squares[row_of_block] = z_square;
      __syncthreads();
#pragma unroll
      for (int i = 0; i < kExpertsPerThread; ++i) {
        const int column = threadIdx.x + i * kThreads;
        for (int j = 0; j < kRows && column < kWidth; ++j) score_sums[i] += shared.rows[j][column];
      }
      if (threadIdx.x == 0) {
        for (int j = 0; j < kRows; ++j) z_sum += shared.z_squares[j];
      }
      __syncthreads();
    }
  }

  if (statistics) {
#pragma unroll
    for (int i = 0; i < kExpertsPerThread; ++i) {
      const int column = threadIdx.x + i * kThreads;
      if (column >= num_experts) continue;
      const int64_t cell = blockIdx.x * p.num_experts + column;
      if (p.statistics.score_sums != nullptr) static_cast<float*>(p.statistics.score_sums)[cell] = score_sums[i];
      if (p.statistics.expert_counts != nullptr) p.statistics.expert_counts[cell] = shared.counts[column];
    }
    if (threadIdx.x == 0 && p.statistics.z_sum != nullptr) static_cast<float*>(p.statistics.z_sum)[blockIdx.x] = z_sum;
  }
}

template <int kLanes, int kRegisters>
Outcome start(const RouteParams& p, const Chunks& chunks, Schedule schedule, Stream stream) {
  using SharedRows = Shared<kLanes, kRegisters>;
  const bool statistics = chunks.count > 0;
  schedule.tokens_per_block = statistics ? chunks.tokens : SharedRows::kRows;
  const int64_t blocks = statistics ? chunks.count : (p.num_tokens + SharedRows::kRows - 1) / SharedRows::kRows;
  const int64_t group_bytes =
      schedule.group_wise ? kWarps * (SharedRows::kWidth + schedule.groups.count) * int64_t{sizeof(int32_t)} : 0;
  return launch("route_forward", route_forward_kernel<kLanes, kRegisters>, dim3(static_cast<uint32_t>(blocks)),
                dim3(kThreads), static_cast<size_t>(group_bytes), stream, p, schedule);
}

}  // namespace

bool fits_registers(const RouteParams& p) {
  return p.dtype != DType::kFloat64 && p.num_experts <= 512 && p.top_k <= 32 && p.num_tokens <= INT32_MAX;
}

Outcome forward_in_registers(const RouteParams& p, const Chunks& chunks, Stream stream) {
  Schedule schedule = {};
  schedule.group_wise = p.num_groups > 1 && p.topk_groups < p.num_groups;
  schedule.groups = Groups::of(p);
  schedule.by_group_size = FastDivide(static_cast<uint32_t>(schedule.groups.size));
  const int64_t num_experts = p.num_experts;
  if (num_experts <= 8 && !schedule.group_wise) return start<8, 1>(p, chunks, schedule, stream);
  if (num_experts <= 16 && !schedule.group_wise) return start<16, 1>(p, chunks, schedule, stream);
  if (num_experts <= 32) return start<32, 1>(p, chunks, schedule, stream);
  if (num_experts <= 64) return start<32, 2>(p, chunks, schedule, stream);
  if (num_experts <= 128) return start<32, 4>(p, chunks, schedule, stream);
  if (num_experts <= 192) return start<32, 6>(p, chunks, schedule, stream);
  if (num_experts <= 256) return start<32, 8>(p, chunks, schedule, stream);
  if (num_experts <= 384) return start<32, 12>(p, chunks, schedule, stream);
  return start<32, 16>(p, chunks, schedule, stream);
}

}  // namespace moe::cuda::routing
