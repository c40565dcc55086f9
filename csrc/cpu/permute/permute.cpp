// A counting sort in two passes over the ids. Slots are cut into ranges; each range ranks its slots within their
// experts, a prefix sum over (expert, range) says where each range's rows of each expert begin, and each range writes
// its own. Rows come out in the order of (expert, slot) however many ranges there are.
//
// With a capacity an expert's rows end early, and slots whose row would lie past them get none. That keeps the first
// slots; when whole choices come first, the slots that stay are marked before the sort.
#include "cpu/permute/permute.h"

#include <memory>
#include <new>

namespace moe::cpu {

namespace {

constexpr int64_t kSlotsPerRange = 16384;

template <class Id>
struct Slots {
  const Id* ids;
  uint64_t num_experts;

  // Negative ids become huge, so one comparison finds every sentinel.
  bool has_expert(int64_t slot) const { return static_cast<uint64_t>(static_cast<int64_t>(ids[slot])) < num_experts; }
};

std::unique_ptr<int32_t[]> zeros(int64_t count) {
  return std::unique_ptr<int32_t[]>(new (std::nothrow) int32_t[static_cast<size_t>(count)]());
}

// Each slot's rank among the slots of its expert, to slot_to_row; sentinels get none.
template <class Id>
void rank(const Slots<Id>& slots, int64_t begin, int64_t end, int32_t* __restrict counts,
          int32_t* __restrict slot_to_row) {
  for (int64_t slot = begin; slot < end; ++slot) {
    if (slots.has_expert(slot)) slot_to_row[slot] = counts[slots.ids[slot]]++;
  }
}

// Ranks become rows. No slot waits for the one before it here, which is why ranks are found first.
template <bool kLimited, class Id>
void place(const Slots<Id>& slots, int64_t begin, int64_t end, const int32_t* __restrict first_row,
           const PermuteParams& params) {
  const int32_t* __restrict offsets = params.expert_offsets;
  int32_t* __restrict row_to_slot = params.row_to_slot;
  int32_t* __restrict slot_to_row = params.slot_to_row;
  for (int64_t slot = begin; slot < end; ++slot) {
    int32_t row = -1;
    if (slots.has_expert(slot)) {
      const int64_t expert = static_cast<int64_t>(slots.ids[slot]);
      row = first_row[expert] + slot_to_row[slot];
      if (!kLimited || row < offsets[expert + 1]) {
        row_to_slot[row] = static_cast<int32_t>(slot);
      } else {
        row = -1;
      }
    }
    slot_to_row[slot] = row;
  }
}

template <class Id>
Status sort_slots(const Slots<Id>& slots, const PermuteParams& params, const Parallel& parallel) {
  const int64_t num_slots = params.num_tokens * params.top_k;
  const int64_t num_experts = params.num_experts;
  // Counters of all ranges together stay below the ids that they count.
  int64_t ranges = num_slots / (num_experts > kSlotsPerRange ? num_experts : kSlotsPerRange);
  ranges = ranges > parallel.num_threads ? parallel.num_threads : ranges;
  ranges = ranges < 1 ? 1 : ranges;

  // [ranges, num_experts]: counts, then the first row of each expert in each range.
  const std::unique_ptr<int32_t[]> counters = zeros(ranges * num_experts);
  if (counters == nullptr) return Status::kUnsupported;
  const auto begin_of = [&](int64_t range) { return num_slots * range / ranges; };

  parallel.for_each(ranges, [&](int64_t range) {
    rank(slots, begin_of(range), begin_of(range + 1), counters.get() + range * num_experts, params.slot_to_row);
  });
  int64_t end = 0;
  for (int64_t e = 0; e < num_experts; ++e) {
    const int64_t begin = end;
    params.expert_offsets[e] = static_cast<int32_t>(begin);
    int32_t row = static_cast<int32_t>(begin);
    for (int64_t range = 0; range < ranges; ++range) {
      int32_t& counter = counters[static_cast<size_t>(range * num_experts + e)];
      const int32_t counted = counter;
      counter = row;
      row += counted;
    }
    end = params.capacity >= 0 && row - begin > params.capacity ? begin + params.capacity : row;
  }
  params.expert_offsets[num_experts] = static_cast<int32_t>(end);
  parallel.for_each(ranges, [&](int64_t range) {
    const int32_t* first_row = counters.get() + range * num_experts;
    if (params.capacity < 0) {
      place<false>(slots, begin_of(range), begin_of(range + 1), first_row, params);
    } else {
      place<true>(slots, begin_of(range), begin_of(range + 1), first_row, params);
    }
  });
  for (int64_t r = end; r < num_slots; ++r) params.row_to_slot[r] = -1;
  return Status::kOk;
}

// Each slot's expert; -1 for sentinels and for slots that come too late in the order of choices.
template <class Id>
Status keep_first_choices(const Slots<Id>& slots, const PermuteParams& params, int32_t* kept_ids) {
  const std::unique_ptr<int32_t[]> kept = zeros(params.num_experts);
  if (kept == nullptr) return Status::kUnsupported;
  for (int64_t k = 0; k < params.top_k; ++k) {
    for (int64_t slot = k; slot < params.num_tokens * params.top_k; slot += params.top_k) {
      int32_t expert = -1;
      if (slots.has_expert(slot)) expert = static_cast<int32_t>(slots.ids[slot]);
      if (expert >= 0 && kept[expert] >= params.capacity) expert = -1;
      if (expert >= 0) ++kept[expert];
      kept_ids[slot] = expert;
    }
  }
  return Status::kOk;
}

template <class Id>
Status permute_ids(const PermuteParams& params, const Parallel& parallel) {
  const uint64_t num_experts = static_cast<uint64_t>(params.num_experts);
  const Slots<Id> slots = {static_cast<const Id*>(params.topk_ids), num_experts};
  if (params.capacity < 0 || params.drop_order == DropOrder::kToken) return sort_slots(slots, params, parallel);
  const std::unique_ptr<int32_t[]> kept_ids = zeros(params.num_tokens * params.top_k);
  if (kept_ids == nullptr) return Status::kUnsupported;
  const Status marked = keep_first_choices(slots, params, kept_ids.get());
  if (marked != Status::kOk) return marked;
  return sort_slots(Slots<int32_t>{kept_ids.get(), num_experts}, params, parallel);
}

}  // namespace

Status permute(const PermuteParams& params, const Parallel& parallel) {
  if (params.num_tokens < 0 || params.top_k < 0 || params.num_experts < 0) return Status::kInvalidArgument;
  return params.ids_are_int64 ? permute_ids<int64_t>(params, parallel) : permute_ids<int32_t>(params, parallel);
}

}  // namespace moe::cpu
