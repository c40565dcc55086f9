// The auction in one block: it is a problem of few steps that each depend on the last, and what is parallel in it fits
// one. A round: a warp for each token without an expert makes its offer; the tokens of experts that now have too many,
// or just enough for the first time, are listed; then, of the offers of each such expert, the cut is found digit by
// digit from histograms, of all of them at once, by price and, of equal prices, by token; the tokens behind the cut go
// on to the next round. Lists of tokens are in no particular order, and nothing depends on it.
#include <algorithm>

#include "cuda/assign/assign.h"
#include "cuda/common/launch_kernel.cuh"
#include "cuda/permute/block_scan.cuh"
#include "cuda/route/math.cuh"
#include "cuda/workspace.h"

namespace moe::cuda {

namespace {

using routing::infinity;
using routing::key_t;

constexpr int kMostThreads = 1024, kMostWarps = kMostThreads / 32;
constexpr int kDigitBits = 4, kDigits = 1 << kDigitBits;
constexpr int64_t kMostShared = 40 * 1024;

// Prices are positive: their bits are in their order.
template <class A>
using bits_t = std::make_unsigned_t<key_t<A>>;
__device__ inline uint32_t bits_of(float x) { return __float_as_uint(x); }
__device__ inline uint64_t bits_of(double x) { return static_cast<uint64_t>(__double_as_longlong(x)); }
__device__ inline float price_of(uint32_t bits) { return __uint_as_float(bits); }
__device__ inline double price_of(uint64_t bits) { return __longlong_as_double(static_cast<int64_t>(bits)); }
__device__ inline void lower(uint32_t* place, uint32_t value) { atomicMin(place, value); }
__device__ inline void lower(uint64_t* place, uint64_t value) {
  atomicMin(reinterpret_cast<unsigned long long*>(place), static_cast<unsigned long long>(value));
}

// What there is of an expert: in shared memory where that is large enough.
template <class A>
struct Experts {
  bits_t<A>* lowest;    // price that it keeps
  bits_t<A>* cut;       // price, and
  uint32_t* cut_place;  // place of the last that it keeps; places are larger for lower tokens
  A* prices;
  int32_t* claims;     // tokens that it has, or that want it
  int32_t* wanted;     // of those that share the digits of the cut so far; 0: the cut is known
  int32_t* histogram;  // [E, digits]

  static int64_t bytes(int64_t count) {
    return count * static_cast<int64_t>(3 * sizeof(A) + (3 + kDigits) * sizeof(int32_t));
  }
  __device__ Experts(void* memory, int64_t count) {
    lowest = static_cast<bits_t<A>*>(memory);
    cut = lowest + count;
    prices = reinterpret_cast<A*>(cut + count);
    cut_place = reinterpret_cast<uint32_t*>(prices + count);
    claims = reinterpret_cast<int32_t*>(cut_place + count);
    wanted = claims + count;
    histogram = wanted + count;
  }
};

template <class A>
struct Plan {
  bits_t<A>* offers;  // [T]
  int32_t* waiting;   // [2, T]: tokens without an expert, now and in the next round
  int32_t* rivals;    // [T]: tokens of the experts whose price changes in this round
  void* experts;      // null: in shared memory
  int64_t bytes;

  Plan(const AuctionParams& p, void* memory) {
    Workspace workspace(memory);
    offers = workspace.take<bits_t<A>>(p.num_tokens);
    waiting = workspace.take<int32_t>(2 * p.num_tokens);
    rivals = workspace.take<int32_t>(p.num_tokens);
    experts = workspace.take_bytes(in_shared(p) ? 0 : Experts<A>::bytes(p.num_experts));
    bytes = workspace.used();
  }
  static bool in_shared(const AuctionParams& p) { return Experts<A>::bytes(p.num_experts) <= kMostShared; }
};

template <class A>
struct Best {
  A value, second;
  int32_t expert;

  // The better of two bests of different experts.
  __device__ void merge(const Best& other) {
    const bool wins = other.value > value || (other.value == value && other.expert < expert);
    second = fmax(second, fmax(other.second, wins ? value : other.value));
    if (wins) {
      value = other.value;
      expert = other.expert;
    }
  }
};

template <class A>
class Auction {
 public:
  struct Shared {
    A low[kMostWarps], high[kMostWarps];
    int32_t count, next_count, rivals;
    int32_t open;  // whether a cut is still to be found
  };

  __device__ Auction(const AuctionParams& p, const Plan<A>& plan, const Experts<A>& experts, Shared& shared)
      : p_(p),
        offers_(plan.offers),
        experts_(experts),
        shared_(shared),
        expert_of_(p.expert_ids),
        rivals_(plan.rivals) {
    now_ = plan.waiting;
    next_ = plan.waiting + p.num_tokens;
  }

  __device__ void run() {
    read();
    const int32_t bidders = shared_.count;
    places_ = static_cast<int32_t>((bidders + p_.num_experts - 1) / p_.num_experts);
    for (int64_t round = 0; round < p_.max_rounds && shared_.count > 0; ++round) {
      bid();
      find_cuts();
      keep();
    }
    if (shared_.count > 0 && threadIdx.x < 32) place_the_rest();
  }

 private:
  __device__ static float largest(float) { return FLT_MAX; }
  __device__ static double largest(double) { return DBL_MAX; }
  __device__ static bool is_finite(A x) { return x - x == A(0); }
  __device__ bool takes_part(int64_t token) const { return p_.token_mask == nullptr || p_.token_mask[token] != 0; }
  __device__ A raw(int64_t token, int64_t expert) const {
    return static_cast<const A*>(p_.scores)[token * p_.scores_stride + expert];
  }
  // From 0 up; the lowest for what is not finite.
  __device__ A value(int64_t token, int64_t expert) const {
    const A score = raw(token, expert);
    return is_finite(score) ? fmin(score - low_, largest(A())) : A(0);
  }

  __device__ void read() {
    if (threadIdx.x == 0) shared_.count = 0;
    for (int64_t e = threadIdx.x; e < p_.num_experts; e += blockDim.x) {
      experts_.prices[e] = 0;
      experts_.claims[e] = 0;
      experts_.lowest[e] = ~bits_t<A>{0};
    }
    __syncthreads();
    A low = infinity(A()), high = -infinity(A());
    const int lane = lane_of(threadIdx.x), warp = static_cast<int>(threadIdx.x) / 32;
    for (int64_t t = warp; t < p_.num_tokens; t += blockDim.x / 32) {
      if (lane == 0) expert_of_[t] = -1;
      if (!takes_part(t)) continue;
      if (lane == 0) now_[atomicAdd(&shared_.count, 1)] = static_cast<int32_t>(t);
      for (int64_t e = lane; e < p_.num_experts; e += 32) {
        const A score = raw(t, e);
        if (is_finite(score)) low = fmin(low, score), high = fmax(high, score);
      }
    }
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
      low = fmin(low, __shfl_xor_sync(kAllLanes, low, step));
      high = fmax(high, __shfl_xor_sync(kAllLanes, high, step));
    }
    if (lane == 0) shared_.low[warp] = low, shared_.high[warp] = high;
    __syncthreads();
    for (int w = 0; w < static_cast<int>(blockDim.x) / 32; ++w)
      low = fmin(low, shared_.low[w]), high = fmax(high, shared_.high[w]);
    if (low > high) low = high = 0;
    low_ = low;
    epsilon_ = fmax(fmin(high - low, largest(A())) / A(50), A(1e-4));
  }

  __device__ void bid() {
    const int lane = lane_of(threadIdx.x);
    const int32_t count = shared_.count;
    for (int64_t i = threadIdx.x / 32; i < count; i += blockDim.x / 32) {
      const int32_t t = now_[i];
      Best<A> best = {-infinity(A()), -infinity(A()), INT32_MAX};
      for (int64_t e = lane; e < p_.num_experts; e += 32) {
        const A profit = value(t, e) - experts_.prices[e];
        best.merge({profit, -infinity(A()), static_cast<int32_t>(e)});
      }
#pragma unroll
      for (int step = 16; step > 0; step /= 2) {
        best.merge({__shfl_xor_sync(kAllLanes, best.value, step), __shfl_xor_sync(kAllLanes, best.second, step),
                    __shfl_xor_sync(kAllLanes, best.expert, step)});
      }
      if (lane == 0) {
        const A second = p_.num_experts == 1 ? best.value : best.second;
        expert_of_[t] = best.expert;
        offers_[t] = bits_of((value(t, best.expert) - second) + epsilon_);
        atomicAdd(&experts_.claims[best.expert], 1);
      }
    }
    if (threadIdx.x == 0) shared_.next_count = 0;
    __syncthreads();
  }

  // The next digits of the cuts: key(token) shifted right by `shift`, of tokens for which agrees(token, expert).
  template <class Bits, class Key, class Agrees>
  __device__ void refine(int shift, Bits* cuts, const Key& key, const Agrees& agrees) {
    for (int64_t i = threadIdx.x; i < p_.num_experts * kDigits; i += blockDim.x) experts_.histogram[i] = 0;
    __syncthreads();
    for (int32_t i = threadIdx.x; i < shared_.rivals; i += blockDim.x) {
      const int32_t t = rivals_[i], e = expert_of_[t];
      if (experts_.wanted[e] == 0 || !agrees(t, e)) continue;
      const Bits bits = key(t);
      // All digits before this one.
      if (((bits ^ cuts[e]) >> shift >> kDigitBits) != 0) continue;
      atomicAdd(&experts_.histogram[e * kDigits + static_cast<int>((bits >> shift) & (kDigits - 1))], 1);
    }
    if (threadIdx.x == 0) shared_.open = 0;
    __syncthreads();
    for (int64_t e = threadIdx.x; e < p_.num_experts; e += blockDim.x) {
      int32_t wanted = experts_.wanted[e];
      if (wanted == 0) continue;
      int digit = kDigits - 1;
      int32_t here = experts_.histogram[e * kDigits + digit];
      for (; here < wanted && digit > 0; here = experts_.histogram[e * kDigits + digit]) {
        wanted -= here;
        --digit;
      }
      cuts[e] |= static_cast<Bits>(digit) << shift;
      // All of this digit stay: whatever the digits behind are.
      experts_.wanted[e] = here == wanted ? 0 : wanted;
      if (here != wanted) atomicOr(&shared_.open, 1);
    }
    __syncthreads();
  }

  // Whether the price changes in this round. A price of 0 is that of an expert which has had room so far.
  __device__ bool is_contested(int64_t e) const {
    return experts_.claims[e] > places_ || (experts_.claims[e] == places_ && experts_.prices[e] == A(0));
  }

  __device__ void find_cuts() {
    if (threadIdx.x == 0) shared_.open = shared_.rivals = 0;
    __syncthreads();
    for (int64_t e = threadIdx.x; e < p_.num_experts; e += blockDim.x) {
      const bool too_many = experts_.claims[e] > places_;
      experts_.wanted[e] = too_many ? places_ : 0;
      experts_.cut[e] = 0;
      experts_.cut_place[e] = 0;
      if (too_many) atomicOr(&shared_.open, 1);
    }
    for (int64_t t = threadIdx.x; t < p_.num_tokens; t += blockDim.x) {
      const int32_t e = expert_of_[t];
      if (e >= 0 && is_contested(e)) rivals_[atomicAdd(&shared_.rivals, 1)] = static_cast<int32_t>(t);
    }
    __syncthreads();
    bool open = shared_.open != 0;
    const auto is_open = [&] {
      __syncthreads();  // everybody has read it before it is written again
      return open;
    };
    for (int shift = sizeof(A) * 8 - kDigitBits; shift >= 0 && is_open(); shift -= kDigitBits) {
      refine(shift, experts_.cut, [&](int64_t t) { return offers_[t]; }, [](int64_t, int32_t) { return true; });
      open = shared_.open != 0;
    }
    for (int shift = 32 - kDigitBits; shift >= 0 && is_open(); shift -= kDigitBits) {
      refine(
          shift, experts_.cut_place, [](int64_t t) { return ~static_cast<uint32_t>(t); },
          [&](int64_t t, int32_t e) { return offers_[t] == experts_.cut[e]; });
      open = shared_.open != 0;
    }
  }

  __device__ void keep() {
    for (int32_t i = threadIdx.x; i < shared_.rivals; i += blockDim.x) {
      const int32_t t = rivals_[i], e = expert_of_[t];
      const bool stays = offers_[t] > experts_.cut[e] ||
                         (offers_[t] == experts_.cut[e] && ~static_cast<uint32_t>(t) >= experts_.cut_place[e]);
      if (stays) {
        lower(&experts_.lowest[e], offers_[t]);
      } else {
        expert_of_[t] = -1;
        next_[atomicAdd(&shared_.next_count, 1)] = t;
      }
    }
    __syncthreads();
    for (int64_t e = threadIdx.x; e < p_.num_experts; e += blockDim.x) {
      if (!is_contested(e)) continue;
      experts_.claims[e] = places_;
      experts_.prices[e] = price_of(experts_.lowest[e]);
      experts_.lowest[e] = ~bits_t<A>{0};
    }
    if (threadIdx.x == 0) shared_.count = shared_.next_count;
    int32_t* spare = now_;
    now_ = next_;
    next_ = spare;
    __syncthreads();
  }

  // One warp.
  __device__ void place_the_rest() {
    const int lane = lane_of(threadIdx.x);
    for (int64_t t = 0; t < p_.num_tokens; ++t) {
      if (expert_of_[t] >= 0 || !takes_part(t)) continue;
      Best<A> best = {-infinity(A()), -infinity(A()), INT32_MAX};
      for (int64_t e = lane; e < p_.num_experts; e += 32) {
        if (experts_.claims[e] < places_) best.merge({value(t, e), -infinity(A()), static_cast<int32_t>(e)});
      }
#pragma unroll
      for (int step = 16; step > 0; step /= 2) {
        best.merge({__shfl_xor_sync(kAllLanes, best.value, step), __shfl_xor_sync(kAllLanes, best.second, step),
                    __shfl_xor_sync(kAllLanes, best.expert, step)});
      }
      __syncwarp();  // all have read the claims
      if (lane == 0) {
        expert_of_[t] = best.expert;
        ++experts_.claims[best.expert];
      }
      __syncwarp();
    }
  }

  const AuctionParams& p_;
  bits_t<A>* offers_;
  const Experts<A> experts_;
  Shared& shared_;
  int32_t* expert_of_;
  int32_t* rivals_;
  int32_t *now_, *next_;
  A low_ = 0, epsilon_ = 0;
  int32_t places_ = 0;
};

template <class A>
__global__ void __launch_bounds__(kMostThreads, 1) auction_kernel(const AuctionParams p, const Plan<A> plan) {
  extern __shared__ int64_t shared_memory[];
  __shared__ typename Auction<A>::Shared shared;
  const Experts<A> experts(plan.experts != nullptr ? plan.experts : shared_memory, p.num_experts);
  Auction<A>(p, plan, experts, shared).run();
}

template <class A>
Outcome run(const AuctionParams& p, void* workspace, Stream stream) {
  const Plan<A> plan(p, workspace);
  const uint32_t threads = p.num_tokens <= 32 ? 128 : p.num_tokens <= 512 ? 512 : kMostThreads;
  const int64_t shared = Plan<A>::in_shared(p) ? Experts<A>::bytes(p.num_experts) : 0;
  return launch("auction", auction_kernel<A>, dim3(1), dim3(threads), static_cast<size_t>(shared), stream, p, plan);
}

bool is_valid(const AuctionParams& p) { return p.num_tokens >= 0 && p.num_experts >= 1 && p.max_rounds >= 0; }

}  // namespace

int64_t auction_workspace_bytes(const AuctionParams& p) {
  if (!is_valid(p) || p.num_tokens == 0) return 0;
  return p.dtype == DType::kFloat64 ? Plan<double>(p, nullptr).bytes : Plan<float>(p, nullptr).bytes;
}

Outcome auction(const AuctionParams& p, void* workspace, Stream stream) {
  if (!is_valid(p)) return {Status::kInvalidArgument};
  if (p.num_tokens == 0) return {};
  return p.dtype == DType::kFloat64 ? run<double>(p, workspace, stream) : run<float>(p, workspace, stream);
}

}  // namespace moe::cuda
