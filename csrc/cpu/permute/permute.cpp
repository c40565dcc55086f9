// A counting sort in two passes over the ids. Slots are cut into ranges; each range counts its experts, a prefix sum
// over (expert, range) says where each range's rows of each expert begin, and each range writes its own. Rows come out
// in the order of (expert, slot) however many ranges there are.
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

template <class Id>
void count(const Slots<Id>& slots, int64_t begin, int64_t end, int32_t* counts) {
  for (int64_t slot = begin; slot < end; ++slot) {
    if (slots.has_expert(slot)) ++counts[slots.ids[slot]];
  }
}

template <class Id>
void place(const Slots<Id>& slots, int64_t begin, int64_t end, int32_t* next_row, const PermuteParams& params) {
  for (int64_t slot = begin; slot < end; ++slot) {
    int32_t row = -1;
    if (slots.has_expert(slot)) {
      row = next_row[slots.ids[slot]]++;
      params.row_to_slot[row] = static_cast<int32_t>(slot);
    }
    params.slot_to_row[slot] = row;
  }
}

template <class Id>
Status sort_slots(const PermuteParams& params, const Parallel& parallel) {
  const Slots<Id> slots = {static_cast<const Id*>(params.topk_ids), static_cast<uint64_t>(params.num_experts)};
  const int64_t num_slots = params.num_tokens * params.top_k;
  const int64_t num_experts = params.num_experts;
  // Counters of all ranges together stay below the ids that they count.
  int64_t ranges = num_slots / (num_experts > kSlotsPerRange ? num_experts : kSlotsPerRange);
  ranges = ranges > parallel.num_threads ? parallel.num_threads : ranges;
  ranges = ranges < 1 ? 1 : ranges;

  // [ranges, num_experts]: counts, then the next row of each expert in each range.
  const std::unique_ptr<int32_t[]> counters(new (std::nothrow) int32_t[static_cast<size_t>(ranges * num_experts)]());
  if (counters == nullptr) return Status::kUnsupported;
  const auto begin_of = [&](int64_t range) { return num_slots * range / ranges; };

  parallel.for_each(ranges, [&](int64_t range) {
    count(slots, begin_of(range), begin_of(range + 1), counters.get() + range * num_experts);
  });
  int32_t row = 0;
  for (int64_t e = 0; e < num_experts; ++e) {
    params.expert_offsets[e] = row;
    for (int64_t range = 0; range < ranges; ++range) {
      int32_t& counter = counters[static_cast<size_t>(range * num_experts + e)];
      const int32_t counted = counter;
      counter = row;
      row += counted;
    }
  }
  params.expert_offsets[num_experts] = row;
  parallel.for_each(ranges, [&](int64_t range) {
    place(slots, begin_of(range), begin_of(range + 1), counters.get() + range * num_experts, params);
  });
  for (int64_t r = row; r < num_slots; ++r) params.row_to_slot[r] = -1;
  return Status::kOk;
}

}  // namespace

Status permute(const PermuteParams& params, const Parallel& parallel) {
  if (params.num_tokens < 0 || params.top_k < 0 || params.num_experts < 0) return Status::kInvalidArgument;
  return params.ids_are_int64 ? sort_slots<int64_t>(params, parallel) : sort_slots<int32_t>(params, parallel);
}

}  // namespace moe::cpu
