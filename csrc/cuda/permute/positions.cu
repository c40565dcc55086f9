// slot_positions by counting, as permute does it: ranges of slots belong to warps, each counts its slots per expert,
// prefix sums say which place the first slot of each range has, then each warp walks its slots in order. Contract:
// moe/positions.h.
//
// Priorities are sorted before: a radix sort, least significant digit first, each digit by the same counting with
// digits in place of experts. It orders the tokens, or the places of slots, and keeps the order of equal ones.
//
// Groups of few slots: one block per group does it all. Of many: chunks of a group are blocks, and each counting is
// three launches; what is sorted may still fit one block, as the tokens do where their slots do not. Nothing depends on
// which warp is first.
#include "cuda/common/launch_kernel.cuh"
#include "cuda/permute/permute_plan.h"
#include "cuda/permute/positions.h"
#include "cuda/permute/rank_per_warp.cuh"
#include "cuda/workspace.h"

namespace moe::cuda {

namespace {

constexpr int kBlockThreads = 1024;  // where one block does everything, and for prefix sums
constexpr int kCountThreads = 256;
constexpr int kDigitBits = 8, kPasses = 32 / kDigitBits;
constexpr uint32_t kDigits = 1 << kDigitBits;

// Rising with falling priority. Zeros are equal whatever their sign, and NaN is -inf.
__device__ uint32_t sort_key(float priority) {
  const uint32_t bits = __float_as_uint(priority == priority ? priority + 0.0f : -INFINITY);
  return ~(bits >> 31 ? ~bits : bits | 0x80000000u);
}

// The slot in place i of a group's order.
struct Order {
  uint32_t top_k;
  bool choices_first;
  FastDivide tokens_of_group;  // with choices_first
  FastDivide divide_by_top_k;

  __device__ uint32_t slot(uint32_t i, const int32_t* tokens) const {
    uint32_t token, k;
    if (choices_first) {
      k = tokens_of_group(i);
      token = i - k * tokens_of_group.divisor();
    } else {
      token = divide_by_top_k(i);
      k = i - token * top_k;
    }
    return (tokens == nullptr ? token : static_cast<uint32_t>(tokens[token])) * top_k + k;
  }
};

// What is sorted, tokens or slots of a group, in the order so far; "experts" are the values of one digit.
struct Digits {
  uint32_t count;
  uint32_t num_experts = kDigits;
  const float* priority;
  const int32_t* sorted;  // null: nothing so far
  Order order;
  bool of_slots;
  int shift;

  __device__ uint32_t at(uint32_t i) const {
    if (sorted != nullptr) return static_cast<uint32_t>(sorted[i]);
    return of_slots ? order.slot(i, nullptr) : i;
  }
  __device__ int32_t expert(uint32_t item) const {
    return static_cast<int32_t>(sort_key(priority[item]) >> shift & (kDigits - 1));
  }
};

// The slots of a group in the order in which they are visited.
template <class Id>
struct Visited {
  uint32_t count;
  uint32_t num_experts;
  Slots<Id> slots;  // for the experts
  const int32_t *tokens_by_priority, *slots_by_priority;
  Order order;

  __device__ uint32_t at(uint32_t i) const {
    if (slots_by_priority != nullptr) return static_cast<uint32_t>(slots_by_priority[i]);
    if (!order.choices_first && tokens_by_priority == nullptr) return i;
    return order.slot(i, tokens_by_priority);
  }
  __device__ int32_t expert(uint32_t slot) const { return slots.expert(slot); }
};

template <class Id>
struct Positions {
  const Id* ids;
  uint32_t num_tokens, top_k, num_experts, group_size;
  Order order, order_of_last;  // the last group may be shorter
  uint32_t last_group;
  const float* priority;  // null: nothing to sort
  bool of_slots;
  int32_t *positions, *counts;
  int32_t *sorted_after_even, *sorted_after_odd;

  __device__ uint32_t tokens(uint32_t group) const { return min(group_size, num_tokens - group * group_size); }
  __device__ uint32_t first_slot(uint32_t group) const { return group * group_size * top_k; }
  __device__ const Order& order_of(uint32_t group) const { return group == last_group ? order_of_last : order; }
  __device__ uint32_t first_item(uint32_t group) const { return of_slots ? first_slot(group) : group * group_size; }
  // Where a pass of the sort leaves its items; the next reads them there.
  __device__ int32_t* after(uint32_t group, int pass) const {
    return (pass % 2 == 0 ? sorted_after_even : sorted_after_odd) + first_item(group);
  }

  __device__ Digits digits(uint32_t group, int pass) const {
    Digits d;
    d.count = of_slots ? tokens(group) * top_k : tokens(group);
    d.priority = priority + first_item(group);
    d.sorted = pass == 0 ? nullptr : after(group, pass - 1);
    d.order = order_of(group);
    d.of_slots = of_slots;
    d.shift = pass * kDigitBits;
    return d;
  }

  __device__ Visited<Id> visited(uint32_t group) const {
    const int32_t* items = priority == nullptr ? nullptr : after(group, kPasses - 1);
    const uint32_t count = tokens(group) * top_k;
    return {count,
            num_experts,
            Slots<Id>{ids + first_slot(group), count, num_experts, top_k},
            of_slots ? nullptr : items,
            of_slots ? items : nullptr,
            order_of(group)};
  }

  __device__ void place(uint32_t group, uint32_t slot, int32_t expert, int32_t rank) const {
    positions[first_slot(group) + slot] = expert < 0 ? -1 : rank;
  }
};

// One block per group.

template <class Id>
__device__ void sort_in_block(const Positions<Id>& p, uint32_t group, int warps, int32_t* counters) {
  __shared__ int32_t scratch[kBlockThreads / 32];
  for (int pass = 0; pass < kPasses; ++pass) {
    const Digits digits = p.digits(group, pass);
    const Range all = {0, digits.count};
    count_per_warp(digits, all, warps, counters);
    int32_t items = 0;
    if (threadIdx.x < kDigits) {
      for (int warp = 0; warp < warps; ++warp) items += counters[warp * kDigits + threadIdx.x];
    }
    const int32_t first = block_exclusive_scan<Sum<int32_t>, kBlockThreads>(items, int32_t{0}, scratch).before;
    if (threadIdx.x < kDigits) rank_warps(counters, kDigits, warps, threadIdx.x, first);
    __syncthreads();
    int32_t* to = p.after(group, pass);
    rank_per_warp(digits, all, warps, counters,
                  [&](uint32_t item, int32_t, int32_t rank) { to[rank] = static_cast<int32_t>(item); });
    __syncthreads();
  }
}

template <class Id>
__global__ void __launch_bounds__(kBlockThreads, 1) positions_sort_kernel(Positions<Id> p, int warps) {
  extern __shared__ int32_t counters[];
  sort_in_block(p, blockIdx.x, warps, counters);
}

template <class Id>
__global__ void __launch_bounds__(kBlockThreads, 1) positions_block_kernel(Positions<Id> p, int sort_warps, int warps) {
  extern __shared__ int32_t counters[];
  const uint32_t group = blockIdx.x;
  if (p.priority != nullptr) sort_in_block(p, group, sort_warps, counters);
  const Visited<Id> visited = p.visited(group);
  const Range all = {0, visited.count};
  count_per_warp(visited, all, warps, counters);
  int32_t* counts = p.counts + static_cast<int64_t>(group) * p.num_experts;
  for (uint32_t expert = threadIdx.x; expert < p.num_experts; expert += kBlockThreads) {
    counts[expert] = rank_warps(counters, p.num_experts, warps, expert, 0);
  }
  if (p.positions == nullptr) return;
  __syncthreads();
  rank_per_warp(visited, all, warps, counters,
                [&](uint32_t slot, int32_t expert, int32_t rank) { p.place(group, slot, expert, rank); });
}

// Chunks of a group. `counters` in the workspace is [groups, experts or digits, chunks].

struct Chunks {
  uint32_t slots;
  uint32_t count;  // of a group
  int32_t* counters;

  __device__ uint32_t group() const { return blockIdx.x / count; }
  __device__ uint32_t index() const { return blockIdx.x % count; }
  __device__ Range own(uint32_t num_slots) const {
    const uint32_t begin = min(index() * slots, num_slots);
    return {begin, min(begin + slots, num_slots)};
  }
  // Of the first expert in this chunk; the next ones are `count` apart.
  __device__ int32_t* own_counters(uint32_t num_experts) const {
    return counters + static_cast<int64_t>(group()) * num_experts * count + index();
  }
};

// The two things that are counted.
template <class Id>
struct SortPass {
  Positions<Id> p;
  int pass;
  int32_t* first;  // [groups, kDigits]: the item that the first of a digit becomes

  __device__ Digits places(uint32_t group) const { return p.digits(group, pass); }
  __device__ int32_t first_rank(uint32_t group, uint32_t digit) const { return first[group * kDigits + digit]; }
  __device__ void place(uint32_t group, uint32_t item, int32_t, int32_t rank) const {
    p.after(group, pass)[rank] = static_cast<int32_t>(item);
  }
};

template <class Id>
struct FinalPass {
  Positions<Id> p;

  __device__ Visited<Id> places(uint32_t group) const { return p.visited(group); }
  __device__ int32_t first_rank(uint32_t, uint32_t) const { return 0; }
  __device__ void place(uint32_t group, uint32_t slot, int32_t expert, int32_t rank) const {
    p.place(group, slot, expert, rank);
  }
};

template <bool kShared, class Pass>
__global__ void __launch_bounds__(kCountThreads, 1) positions_count_kernel(Pass pass, Chunks chunks) {
  extern __shared__ int32_t shared_counters[];
  const auto places = pass.places(chunks.group());
  int32_t* own = chunks.own_counters(places.num_experts);
  int32_t* counters = kShared ? shared_counters : own;
  const int64_t stride = kShared ? 1 : chunks.count;
  for (uint32_t e = threadIdx.x; e < places.num_experts; e += kCountThreads) counters[e * stride] = 0;
  __syncthreads();
  const Range range = chunks.own(places.count);
  count_slots(places, range.begin, range.end, threadIdx.x, kCountThreads, counters, stride);
  if constexpr (kShared) {
    __syncthreads();
    for (uint32_t e = threadIdx.x; e < places.num_experts; e += kCountThreads) {
      own[static_cast<int64_t>(e) * chunks.count] = counters[e];
    }
  }
}

// Counters become the ranks of the chunks' first slots in their expert; totals are an expert's slots. With kFirst
// totals are the slots of all experts before it, of which there are kDigits.
template <bool kFirst>
__global__ void __launch_bounds__(kBlockThreads, 1)
    positions_scan_kernel(Chunks chunks, uint32_t num_experts, int32_t* totals) {
  __shared__ int32_t counts[kDigits];
  __shared__ int32_t scratch[kBlockThreads / 32];
  const int64_t first = static_cast<int64_t>(blockIdx.x) * num_experts;
  for (uint32_t expert = threadIdx.x / 32; expert < num_experts; expert += kBlockThreads / 32) {
    int32_t* own = chunks.counters + (first + expert) * chunks.count;
    const int32_t count = rank_chunks(own, static_cast<int32_t>(chunks.count));
    if (lane_of(threadIdx.x) == 0) {
      if constexpr (kFirst) {
        counts[expert] = count;
      } else {
        totals[first + expert] = count;
      }
    }
  }
  if constexpr (kFirst) {
    __syncthreads();
    const int32_t own = threadIdx.x < kDigits ? counts[threadIdx.x] : 0;
    const int32_t before = block_exclusive_scan<Sum<int32_t>, kBlockThreads>(own, int32_t{0}, scratch).before;
    if (threadIdx.x < kDigits) totals[first + threadIdx.x] = before;
  }
}

template <bool kShared, class Pass>
__global__ void __launch_bounds__(kCountThreads, 1) positions_place_kernel(Pass pass, Chunks chunks, int warps) {
  extern __shared__ int32_t shared_counters[];
  const uint32_t group = chunks.group();
  const auto places = pass.places(group);
  const Range range = chunks.own(places.count);
  int32_t* own = chunks.own_counters(places.num_experts);
  const auto place = [&](uint32_t slot, int32_t expert, int32_t rank) { pass.place(group, slot, expert, rank); };
  if constexpr (kShared) {
    count_per_warp(places, range, warps, shared_counters);
    for (uint32_t e = threadIdx.x; e < places.num_experts; e += blockDim.x) {
      const int32_t rank = pass.first_rank(group, e) + own[static_cast<int64_t>(e) * chunks.count];
      rank_warps(shared_counters, places.num_experts, warps, e, rank);
    }
    __syncthreads();
    rank_per_warp(places, range, warps, shared_counters, place);
  } else {  // a block is one warp, and ranks begin at 0
    rank_slots(places, range.begin, range.end, own, chunks.count, place);
  }
}

// Launchers.

bool is_valid(const SlotPositionsParams& p) {
  return p.num_tokens >= 0 && p.top_k >= 0 && p.num_experts >= 0 && p.num_experts < INT32_MAX && p.group_size >= 1 &&
         p.num_groups >= 0 && p.num_groups <= std::max<int64_t>(p.num_tokens, 1) &&
         (p.top_k == 0 || p.num_tokens < INT32_MAX / p.top_k);
}

// How the work is cut, from sizes alone.
struct Plan {
  bool sorts;
  int64_t group_tokens, sorted_items;  // of a full group, of all groups
  PermutePlan sort, final;

  explicit Plan(const SlotPositionsParams& p) {
    sorts = p.priority != nullptr && p.positions != nullptr;
    group_tokens = std::min(p.group_size, p.num_tokens);
    const int64_t group_slots = group_tokens * p.top_k;
    sorted_items = !sorts ? 0 : p.priority_of_slots ? p.num_tokens * p.top_k : p.num_tokens;
    final = plan_permute(group_slots, p.num_experts);
    // Up to here one block is done with all four digits before twelve launches would be.
    constexpr int64_t kOneBlockItems = 32 * 1024;
    const int64_t items = p.priority_of_slots ? group_slots : group_tokens;
    sort = plan_permute(items <= kOneBlockItems ? std::min(items, kOneBlockSlots) : items, kDigits);
  }

  bool one_block() const { return final.one_block; }
};

struct Buffers {
  int32_t *sorted[2], *counters, *first;
  int64_t bytes;

  Buffers(const SlotPositionsParams& p, const Plan& plan, void* base) {
    Workspace workspace(base);
    for (int32_t*& items : sorted) items = workspace.take<int32_t>(plan.sorted_items);
    const int64_t of_sort = plan.sorts ? plan.sort.workspace_bytes : 0;
    const int64_t of_group = plan.one_block() ? 0 : std::max(of_sort, plan.final.workspace_bytes);
    counters = static_cast<int32_t*>(workspace.take_bytes(of_group * p.num_groups));
    first = workspace.take<int32_t>(plan.sorts && !plan.sort.one_block ? p.num_groups * kDigits : 0);
    bytes = workspace.used();
  }
};

template <bool kFirst, bool kShared, class Pass>
Outcome rank_chunks_of(const Pass& pass, const PermutePlan& plan, int64_t num_groups, int64_t num_experts,
                       int32_t* counters, int32_t* totals, bool places, Stream stream) {
  const Chunks chunks = {plan.chunk_slots, static_cast<uint32_t>(plan.num_chunks), counters};
  const unsigned blocks = static_cast<unsigned>(num_groups * plan.num_chunks);
  const size_t shared = kShared ? static_cast<size_t>(num_experts) * sizeof(int32_t) : 0;
  Outcome outcome = launch("positions_count", positions_count_kernel<kShared, Pass>, blocks, kCountThreads, shared,
                           stream, pass, chunks);
  if (!outcome.ok()) return outcome;
  outcome = launch("positions_scan", positions_scan_kernel<kFirst>, static_cast<unsigned>(num_groups), kBlockThreads, 0,
                   stream, chunks, static_cast<uint32_t>(num_experts), totals);
  if (!outcome.ok() || !places) return outcome;
  return launch("positions_place", positions_place_kernel<kShared, Pass>, blocks, plan.warps * 32, plan.warps * shared,
                stream, pass, chunks, plan.warps);
}

Order make_order(const SlotPositionsParams& p, int64_t tokens) {
  return {static_cast<uint32_t>(p.top_k), p.drop_order == DropOrder::kChoice,
          FastDivide(static_cast<uint32_t>(std::max<int64_t>(tokens, 1))),
          FastDivide(static_cast<uint32_t>(std::max<int64_t>(p.top_k, 1)))};
}

template <class Id>
Outcome number_slots(const SlotPositionsParams& p, void* base, Stream stream) {
  const Plan plan(p);
  const Buffers buffers(p, plan, base);
  const int64_t last = std::max<int64_t>(p.num_groups - 1, 0);
  const Positions<Id> positions = {static_cast<const Id*>(p.topk_ids),
                                   static_cast<uint32_t>(p.num_tokens),
                                   static_cast<uint32_t>(p.top_k),
                                   static_cast<uint32_t>(p.num_experts),
                                   static_cast<uint32_t>(plan.group_tokens),
                                   make_order(p, plan.group_tokens),
                                   make_order(p, p.num_tokens - last * plan.group_tokens),
                                   static_cast<uint32_t>(last),
                                   plan.sorts ? p.priority : nullptr,
                                   p.priority_of_slots,
                                   p.positions,
                                   p.counts,
                                   buffers.sorted[0],
                                   buffers.sorted[1]};
  if (plan.one_block()) {
    const int64_t of_sort = plan.sorts ? plan.sort.warps * static_cast<int64_t>(kDigits) : 0;
    const size_t shared = std::max(of_sort, plan.final.warps * p.num_experts) * sizeof(int32_t);
    return launch("positions_block", positions_block_kernel<Id>, static_cast<unsigned>(p.num_groups), kBlockThreads,
                  shared, stream, positions, plan.sort.warps, plan.final.warps);
  }
  if (plan.sorts && plan.sort.one_block) {
    const Outcome outcome =
        launch("positions_sort", positions_sort_kernel<Id>, static_cast<unsigned>(p.num_groups), kBlockThreads,
               plan.sort.warps * kDigits * sizeof(int32_t), stream, positions, plan.sort.warps);
    if (!outcome.ok()) return outcome;
  }
  for (int pass = 0; plan.sorts && !plan.sort.one_block && pass < kPasses; ++pass) {
    const SortPass<Id> sort = {positions, pass, buffers.first};
    const Outcome outcome = rank_chunks_of<true, true>(sort, plan.sort, p.num_groups, kDigits, buffers.counters,
                                                       buffers.first, true, stream);
    if (!outcome.ok()) return outcome;
  }
  const FinalPass<Id> final = {positions};
  const auto rank = plan.final.shared_counters ? rank_chunks_of<false, true, FinalPass<Id>>
                                               : rank_chunks_of<false, false, FinalPass<Id>>;
  return rank(final, plan.final, p.num_groups, p.num_experts, buffers.counters, p.counts, p.positions != nullptr,
              stream);
}

}  // namespace

int64_t slot_positions_workspace_bytes(const SlotPositionsParams& params) {
  if (!is_valid(params)) return 0;
  return Buffers(params, Plan(params), nullptr).bytes;
}

Outcome slot_positions(const SlotPositionsParams& params, void* workspace, Stream stream) {
  if (!is_valid(params)) return {Status::kInvalidArgument};
  return params.ids_are_int64 ? number_slots<int64_t>(params, workspace, stream)
                              : number_slots<int32_t>(params, workspace, stream);
}

}  // namespace moe::cuda
