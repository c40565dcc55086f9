// expert_choice in three launches. The first turns scores into integer keys and lays them out by columns. The second
// has a block for each column: its C-th largest key is found digit by digit from histograms, what lies above it, and
// the first of what equals it, is collected in the order of tokens and sorted. The third asks for each token which
// experts' cuts its keys pass, a warp for each token.
#include <algorithm>

#include "cuda/assign/assign.h"
#include "cuda/common/launch_kernel.cuh"
#include "cuda/permute/block_scan.cuh"
#include "cuda/route/math.cuh"
#include "cuda/workspace.h"

namespace moe::cuda {

namespace {

using routing::key_t;
using routing::KeyOf;

constexpr int kTile = 32, kTileRows = 8;
constexpr int kDigitBits = 8, kDigits = 1 << kDigitBits;
constexpr int kTokenThreads = 128;

template <class A>
__device__ key_t<A> key_of_nothing() {  // -inf, which is never chosen
  return routing::rank(-routing::infinity(A()));
}

// A key and its token as one number: larger is better.
template <class A>
struct Entry;
template <>
struct Entry<float> {
  int64_t packed;
  __device__ static Entry of(int32_t key, int32_t token) {
    return {static_cast<int64_t>((static_cast<uint64_t>(static_cast<uint32_t>(key)) << 32) |
                                 ~static_cast<uint32_t>(token))};
  }
  __device__ static Entry none() { return {INT64_MIN}; }
  __device__ bool operator<(const Entry& other) const { return packed < other.packed; }
  __device__ int32_t token() const { return static_cast<int32_t>(~static_cast<uint32_t>(packed)); }
};
template <>
struct Entry<double> {
  int64_t key, token_below;
  __device__ static Entry of(int64_t key, int32_t token) { return {key, -int64_t{token}}; }
  __device__ static Entry none() { return {INT64_MIN, INT64_MIN}; }
  __device__ bool operator<(const Entry& other) const {
    return key != other.key ? key < other.key : token_below < other.token_below;
  }
  __device__ int32_t token() const { return static_cast<int32_t>(-token_below); }
};

// A token of a column is chosen if its key is larger, or equal and the token is not behind the last.
template <class A>
struct Cut {
  key_t<A> key;
  int32_t last_token;
};

template <class A>
struct Plan {
  key_t<A>* keys;     // [G*E, n]
  Cut<A>* cuts;       // [G*E]
  Entry<A>* entries;  // [G*E, sorted], or null where they fit shared memory
  int64_t sorted;     // the power of two from C on
  int64_t bytes;

  static constexpr int64_t kMostShared = 32 * 1024;

  Plan(const ExpertChoiceParams& p, void* memory) : sorted(1) {
    while (sorted < p.capacity) sorted *= 2;
    const int64_t columns = p.num_groups * p.num_experts;
    Workspace workspace(memory);
    keys = workspace.take<key_t<A>>(columns * p.group_size);
    cuts = workspace.take<Cut<A>>(columns);
    entries = workspace.take<Entry<A>>(in_shared() ? 0 : columns * sorted);
    bytes = workspace.used();
  }
  bool in_shared() const { return sorted * static_cast<int64_t>(sizeof(Entry<A>)) <= kMostShared; }
};

template <class A>
__global__ void __launch_bounds__(kTile* kTileRows) keys_by_column_kernel(const ExpertChoiceParams p, key_t<A>* keys) {
  __shared__ key_t<A> tile[kTile][kTile + 1];
  const int64_t expert_tiles = (p.num_experts + kTile - 1) / kTile, token_tiles = (p.group_size + kTile - 1) / kTile;
  const int64_t first_expert = blockIdx.x % expert_tiles * kTile;
  const int64_t first_token = blockIdx.x / expert_tiles % token_tiles * kTile;
  const int64_t group = blockIdx.x / expert_tiles / token_tiles;
  const int column = static_cast<int>(threadIdx.x) % kTile;
  for (int r = static_cast<int>(threadIdx.x) / kTile; r < kTile; r += kTileRows) {
    const int64_t token = first_token + r, expert = first_expert + column;
    if (token < p.group_size && expert < p.num_experts) {
      const int64_t row = group * p.group_size + token;
      const bool masked = p.token_mask != nullptr && p.token_mask[row] == 0;
      tile[r][column] =
          masked ? KeyOf<A>::kLowest : routing::rank(static_cast<const A*>(p.scores)[row * p.scores_stride + expert]);
    }
  }
  __syncthreads();
  for (int r = static_cast<int>(threadIdx.x) / kTile; r < kTile; r += kTileRows) {
    const int64_t expert = first_expert + r, token = first_token + column;
    if (token < p.group_size && expert < p.num_experts) {
      keys[(group * p.num_experts + expert) * p.group_size + token] = tile[column][r];
    }
  }
}

template <class A>
__device__ std::make_unsigned_t<key_t<A>> digits_of(key_t<A> key) {
  using Unsigned = std::make_unsigned_t<key_t<A>>;
  return static_cast<Unsigned>(key) ^ (Unsigned{1} << (sizeof(key) * 8 - 1));
}

template <int kThreads>
struct SelectShared {
  int32_t histogram[kDigits];
  int32_t scan[kThreads / 32];
  int32_t digit, wanted;
  int32_t last_token;
};

// The key of which `wanted` of its equals, and everything larger, make C. Nothing to leave out: the key of -inf, 0.
template <class A, int kThreads>
__device__ key_t<A> find_cut(const key_t<A>* keys, int64_t count, int32_t& wanted, SelectShared<kThreads>& shared) {
  using Unsigned = std::make_unsigned_t<key_t<A>>;
  const int thread = static_cast<int>(threadIdx.x);
  Unsigned prefix = 0;
  for (int shift = sizeof(key_t<A>) * 8 - kDigitBits; shift >= 0; shift -= kDigitBits) {
    const bool first = shift + kDigitBits == sizeof(key_t<A>) * 8;
    if (thread < kDigits) shared.histogram[thread] = 0;
    if (thread == 0) shared.digit = -1;
    __syncthreads();
    for (int64_t i = thread; i < count; i += kThreads) {
      if (keys[i] <= key_of_nothing<A>()) continue;
      const Unsigned digits = digits_of<A>(keys[i]);
      if (first || (digits >> (first ? 0 : shift + kDigitBits)) == prefix) {
        atomicAdd(&shared.histogram[static_cast<int>((digits >> shift) & (kDigits - 1))], 1);
      }
    }
    __syncthreads();
    // Thread d looks at the d-th digit from above.
    const int32_t own = thread < kDigits ? shared.histogram[kDigits - 1 - thread] : 0;
    const auto above = block_exclusive_scan<Sum<int32_t>, kThreads>(own, 0, shared.scan);
    if (above.before < wanted && wanted <= above.before + own) {
      shared.digit = kDigits - 1 - thread;
      shared.wanted = wanted - above.before;
    }
    __syncthreads();
    if (shared.digit < 0) {  // fewer than wanted, which only the first digit can tell
      wanted = 0;
      return key_of_nothing<A>();
    }
    prefix = static_cast<Unsigned>((prefix << (first ? 0 : kDigitBits)) | static_cast<Unsigned>(shared.digit));
    wanted = shared.wanted;
    __syncthreads();
  }
  return static_cast<key_t<A>>(prefix ^ (Unsigned{1} << (sizeof(prefix) * 8 - 1)));
}

// Writes what is chosen to entries, in the order of tokens. Returns how much that is.
template <class A, int kThreads>
__device__ int32_t collect(const key_t<A>* keys, int64_t count, key_t<A> cut, int32_t wanted, Entry<A>* entries,
                           SelectShared<kThreads>& shared) {
  const int thread = static_cast<int>(threadIdx.x);
  if (thread == 0) shared.last_token = -1;
  __syncthreads();
  int32_t larger_before = 0, equal_before = 0;
  for (int64_t first = 0; first < count; first += kThreads) {
    const int64_t i = first + thread;
    const key_t<A> key = i < count ? keys[i] : KeyOf<A>::kLowest;
    const bool larger = key > cut, equal = key == cut && wanted > 0;
    // Two counts in one scan: neither passes the number of threads.
    const auto scanned =
        block_exclusive_scan<Sum<int32_t>, kThreads>((larger ? 1 : 0) + (equal ? 1 << 16 : 0), 0, shared.scan);
    const int32_t equals = equal_before + (scanned.before >> 16);
    if (larger || (equal && equals < wanted)) {
      const int32_t place = larger_before + (scanned.before & 0xffff) + min(equals, wanted);
      entries[place] = Entry<A>::of(key, static_cast<int32_t>(i));
      if (equal && equals == wanted - 1) shared.last_token = static_cast<int32_t>(i);
    }
    larger_before += scanned.total & 0xffff;
    equal_before += scanned.total >> 16;
  }
  return larger_before + min(equal_before, wanted);
}

// Bitonic, the best first. `size` is a power of two.
template <class A, int kThreads>
__device__ void sort(Entry<A>* entries, int64_t size) {
  for (int64_t run = 2; run <= size; run *= 2) {
    for (int64_t distance = run / 2; distance > 0; distance /= 2) {
      __syncthreads();
      for (int64_t pair = threadIdx.x; pair < size / 2; pair += kThreads) {
        const int64_t low = pair / distance * distance * 2 + pair % distance, high = low + distance;
        const Entry<A> a = entries[low], b = entries[high];
        const bool falling = (low & run) == 0;
        if (falling ? a < b : b < a) {
          entries[low] = b;
          entries[high] = a;
        }
      }
    }
  }
  __syncthreads();
}

template <class A, int kThreads>
__global__ void __launch_bounds__(kThreads, 1) choose_tokens_kernel(const ExpertChoiceParams p, const key_t<A>* keys,
                                                                    Cut<A>* cuts, Entry<A>* memory, int64_t sorted) {
  extern __shared__ int64_t shared_entries[];
  __shared__ SelectShared<kThreads> shared;
  const int64_t column = blockIdx.x;
  Entry<A>* entries = memory != nullptr ? memory + column * sorted : reinterpret_cast<Entry<A>*>(shared_entries);
  keys += column * p.group_size;
  int32_t wanted = static_cast<int32_t>(p.capacity);
  const key_t<A> cut = find_cut<A, kThreads>(keys, p.group_size, wanted, shared);
  const int32_t found = collect<A, kThreads>(keys, p.group_size, cut, wanted, entries, shared);
  for (int64_t i = found + threadIdx.x; i < sorted; i += kThreads) entries[i] = Entry<A>::none();
  sort<A, kThreads>(entries, sorted);
  const int32_t first_token = static_cast<int32_t>(column / p.num_experts * p.group_size);
  for (int64_t c = threadIdx.x; c < p.capacity; c += kThreads) {
    p.token_ids[column * p.capacity + c] = c < found ? first_token + entries[c].token() : -1;
  }
  if (threadIdx.x == 0) cuts[column] = {cut, shared.last_token};
}

template <class A>
__global__ void __launch_bounds__(kTokenThreads)
    experts_of_tokens_kernel(const ExpertChoiceParams p, const Cut<A>* cuts) {
  const int64_t token = (int64_t{blockIdx.x} * kTokenThreads + threadIdx.x) / 32;
  const int lane = lane_of(threadIdx.x);
  if (token >= p.num_groups * p.group_size) return;
  const int64_t group = token / p.group_size;
  const int32_t own = static_cast<int32_t>(token - group * p.group_size);
  const A* scores = static_cast<const A*>(p.scores) + token * p.scores_stride;
  cuts += group * p.num_experts;
  int32_t* ids = p.topk_ids + token * p.max_experts;
  const bool nobody = p.capacity == 0 || (p.token_mask != nullptr && p.token_mask[token] == 0);

  // A round finds the best after the one before: of a smaller key, or of an equal one and a higher expert.
  key_t<A> last_key = KeyOf<A>::kHighest;
  int32_t last_expert = -1;
  int64_t k = 0;
  for (; k < p.max_experts && !nobody; ++k) {
    key_t<A> best = KeyOf<A>::kLowest;
    int32_t expert = INT32_MAX;
    for (int64_t e = lane; e < p.num_experts; e += 32) {
      const key_t<A> key = routing::rank(scores[e]);
      const Cut<A> cut = cuts[e];
      const bool chosen = key > cut.key || (key == cut.key && own <= cut.last_token);
      const bool later = key < last_key || (key == last_key && e > last_expert);
      if (chosen && later && key > best) {
        best = key;
        expert = static_cast<int32_t>(e);
      }
    }
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
      const key_t<A> other_key = __shfl_xor_sync(kAllLanes, best, step);
      const int32_t other = __shfl_xor_sync(kAllLanes, expert, step);
      if (other_key > best || (other_key == best && other < expert)) {
        best = other_key;
        expert = other;
      }
    }
    if (expert == INT32_MAX) break;
    if (lane == 0) ids[k] = expert;
    last_key = best;
    last_expert = expert;
  }
  for (k += lane; k < p.max_experts; k += 32) ids[k] = -1;
}

template <class A, int kThreads>
Outcome choose(const ExpertChoiceParams& p, const Plan<A>& plan, Stream stream) {
  const size_t shared = plan.in_shared() ? static_cast<size_t>(plan.sorted) * sizeof(Entry<A>) : 0;
  return launch("choose_tokens", choose_tokens_kernel<A, kThreads>,
                dim3(static_cast<uint32_t>(p.num_groups * p.num_experts)), dim3(kThreads), shared, stream, p,
                static_cast<const key_t<A>*>(plan.keys), plan.cuts, plan.entries, plan.sorted);
}

template <class A>
Outcome run(const ExpertChoiceParams& p, void* workspace, Stream stream) {
  const Plan<A> plan(p, workspace);
  const int64_t num_tokens = p.num_groups * p.group_size;
  if (p.capacity > 0) {
    const int64_t tiles = p.num_groups * ((p.group_size + kTile - 1) / kTile) * ((p.num_experts + kTile - 1) / kTile);
    if (tiles > INT32_MAX || p.num_groups * p.num_experts > INT32_MAX) return {Status::kUnsupported};
    Outcome outcome = launch("keys_by_column", keys_by_column_kernel<A>, dim3(static_cast<uint32_t>(tiles)),
                             dim3(kTile * kTileRows), 0, stream, p, plan.keys);
    constexpr int64_t kManyTokens = 4096;
    if (outcome.ok()) {
      outcome = p.group_size < kManyTokens ? choose<A, 256>(p, plan, stream) : choose<A, 1024>(p, plan, stream);
    }
    if (!outcome.ok()) return outcome;
  }
  const int64_t blocks = (num_tokens * 32 + kTokenThreads - 1) / kTokenThreads;
  return launch("experts_of_tokens", experts_of_tokens_kernel<A>, dim3(static_cast<uint32_t>(blocks)),
                dim3(kTokenThreads), 0, stream, p, static_cast<const Cut<A>*>(plan.cuts));
}

bool is_valid(const ExpertChoiceParams& p) {
  return p.capacity >= 0 && p.capacity <= p.group_size && p.num_groups >= 1 && p.num_experts >= 1 && p.max_experts >= 1;
}

}  // namespace

int64_t expert_choice_workspace_bytes(const ExpertChoiceParams& p) {
  if (!is_valid(p) || p.capacity == 0) return 0;
  return p.dtype == DType::kFloat64 ? Plan<double>(p, nullptr).bytes : Plan<float>(p, nullptr).bytes;
}

Outcome expert_choice(const ExpertChoiceParams& p, void* workspace, Stream stream) {
  if (!is_valid(p)) return {Status::kInvalidArgument};
  return p.dtype == DType::kFloat64 ? run<double>(p, workspace, stream) : run<float>(p, workspace, stream);
}

}  // namespace moe::cuda
