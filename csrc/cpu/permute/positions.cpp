// slot_positions by counting, in time linear in the slots. Contract: moe/positions.h.
//
// The places of a group's order are cut into ranges; each range counts its experts, a prefix sum over the ranges says
// which place the first slot of each expert has in a range, and each range numbers its own. That does not depend on how
// many ranges there are. Priorities are sorted before: a radix sort made of the same counting, with the number of the
// token or of the place below the key, so that equal keys keep their order.
//
// With at least as many groups as threads, threads take groups; with fewer, the ranges of one group.
#include "cpu/permute/positions.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <memory>
#include <new>

namespace moe::cpu {

namespace {

constexpr int64_t kPlacesPerRange = 16384;
constexpr int kDigitBits = 11;
constexpr int64_t kDigits = int64_t{1} << kDigitBits;
constexpr int64_t kRadixSize = 1024;  // fewer keys are sorted by comparison

// What one thread, or all threads that work on one group, need.
struct Scratch {
  int64_t ranges;
  int32_t* counters;  // [ranges, max(num_experts, kDigits)]
  uint64_t *keys, *spare;
};

// Rising with falling priority. Zeros are equal whatever their sign, and NaN is -inf.
uint64_t sort_key(float priority) {
  priority = priority == priority ? priority + 0.0f : -std::numeric_limits<float>::infinity();
  uint32_t bits;
  std::memcpy(&bits, &priority, sizeof bits);
  const uint32_t rising = bits >> 31 ? ~bits : bits | 0x80000000u;
  return static_cast<uint32_t>(~rising);
}

// One group of tokens, and the order in which its slots are visited.
template <class Id>
struct Group {
  const Id* ids;  // [tokens, top_k]
  int64_t tokens, top_k;
  uint64_t num_experts;
  bool choices_first;
  const uint64_t* tokens_by_priority = nullptr;  // in the low 32 bits
  const uint64_t* slots_by_priority = nullptr;

  int64_t num_slots() const { return tokens * top_k; }

  // -1: none. Negative ids become huge, so one comparison finds every sentinel.
  int64_t expert(int64_t slot) const {
    const int64_t id = static_cast<int64_t>(ids[slot]);
    return static_cast<uint64_t>(id) < num_experts ? id : -1;
  }

  // Places are below 2^31, and a division of 32 bits is the faster one.
  uint32_t slot_at(uint32_t place) const {
    const uint32_t each = static_cast<uint32_t>(tokens), next = static_cast<uint32_t>(top_k);
    return choices_first ? place % each * next + place / each : place;
  }

  // body(slot) for the places begin .. end in order.
  template <class Body>
  void visit(int64_t begin, int64_t end, const Body& body) const {
    if (begin >= end) return;  // there may be no tokens to divide by
    if (slots_by_priority != nullptr) {
      for (int64_t place = begin; place < end; ++place) {
        body(static_cast<int64_t>(slots_by_priority[place] & 0xffffffffu));
      }
      return;
    }
    if (!choices_first && tokens_by_priority == nullptr) {
      for (int64_t slot = begin; slot < end; ++slot) body(slot);
      return;
    }
    const int64_t inner = choices_first ? tokens : top_k;
    int64_t outer_index = begin / inner, inner_index = begin % inner;
    for (int64_t place = begin; place < end; ++place) {
      int64_t token = choices_first ? inner_index : outer_index;
      const int64_t choice = choices_first ? outer_index : inner_index;
      if (tokens_by_priority != nullptr) token = static_cast<int64_t>(tokens_by_priority[token] & 0xffffffffu);
      body(token * top_k + choice);
      if (++inner_index == inner) inner_index = 0, ++outer_index;
    }
  }
};

int64_t begin_of(int64_t range, int64_t ranges, int64_t size) { return size * range / ranges; }

// [ranges, bins] counts become the number of items in the bin before the range; on_bin(bin, items) says where to begin.
template <class OnBin>
void scan(int32_t* counters, int64_t ranges, int64_t bins, const OnBin& on_bin) {
  for (int64_t bin = 0; bin < bins; ++bin) {
    int32_t items = 0;
    for (int64_t range = 0; range < ranges; ++range) items += counters[range * bins + bin];
    int32_t next = on_bin(bin, items);
    for (int64_t range = 0; range < ranges; ++range) {
      int32_t& counter = counters[range * bins + bin];
      const int32_t counted = counter;
      counter = next;
      next += counted;
    }
  }
}

// Sorts `size` numbers of which the high 32 bits are the key. Returns where they are: keys or spare.
uint64_t* sort(const Scratch& scratch, int64_t size, const Parallel& parallel) {
  uint64_t *from = scratch.keys, *to = scratch.spare;
  if (size < kRadixSize) {
    std::sort(from, from + size);
    return from;
  }
  const int64_t ranges = std::clamp<int64_t>(size / kPlacesPerRange, 1, scratch.ranges);
  for (int shift = 32; shift < 64; shift += kDigitBits) {
    const auto digit = [shift](uint64_t key) { return static_cast<int64_t>(key >> shift) & (kDigits - 1); };
    parallel.for_each(ranges, [&](int64_t range) {
      int32_t* counters = scratch.counters + range * kDigits;
      std::fill(counters, counters + kDigits, 0);
      const int64_t end = begin_of(range + 1, ranges, size);
      for (int64_t i = begin_of(range, ranges, size); i < end; ++i) ++counters[digit(from[i])];
    });
    int32_t begin = 0;
    scan(scratch.counters, ranges, kDigits, [&](int64_t, int32_t items) {
      const int32_t own = begin;
      begin += items;
      return own;
    });
    parallel.for_each(ranges, [&](int64_t range) {
      int32_t* next = scratch.counters + range * kDigits;
      const int64_t end = begin_of(range + 1, ranges, size);
      for (int64_t i = begin_of(range, ranges, size); i < end; ++i) to[next[digit(from[i])]++] = from[i];
    });
    std::swap(from, to);
  }
  return from;
}

// positions is null where only the counts are wanted.
template <class Id>
void number_slots(const Group<Id>& group, const Scratch& scratch, int32_t* positions, int32_t* counts,
                  const Parallel& parallel) {
  const int64_t size = group.num_slots(), bins = static_cast<int64_t>(group.num_experts);
  const int64_t ranges = std::clamp<int64_t>(size / std::max(bins, kPlacesPerRange), 1, scratch.ranges);
  parallel.for_each(ranges, [&](int64_t range) {
    int32_t* counters = scratch.counters + range * bins;
    std::fill(counters, counters + bins, 0);
    group.visit(begin_of(range, ranges, size), begin_of(range + 1, ranges, size), [&](int64_t slot) {
      const int64_t expert = group.expert(slot);
      if (expert >= 0) ++counters[expert];
    });
  });
  scan(scratch.counters, ranges, bins, [&](int64_t expert, int32_t items) {
    counts[expert] = items;
    return 0;
  });
  if (positions == nullptr) return;
  parallel.for_each(ranges, [&](int64_t range) {
    int32_t* next = scratch.counters + range * bins;
    group.visit(begin_of(range, ranges, size), begin_of(range + 1, ranges, size), [&](int64_t slot) {
      const int64_t expert = group.expert(slot);
      positions[slot] = expert >= 0 ? next[expert]++ : -1;
    });
  });
}

template <class Id>
void do_group(const SlotPositionsParams& params, int64_t index, const Scratch& scratch, const Parallel& parallel) {
  const int64_t first = index * params.group_size, first_slot = first * params.top_k;
  Group<Id> group = {static_cast<const Id*>(params.topk_ids) + first_slot,
                     std::min(params.group_size, params.num_tokens - first), params.top_k,
                     static_cast<uint64_t>(params.num_experts),
                     params.drop_order == DropOrder::kChoice && params.positions != nullptr};
  if (params.priority != nullptr && params.positions != nullptr) {
    const int64_t size = params.priority_of_slots ? group.num_slots() : group.tokens;
    const float* priority = params.priority + (params.priority_of_slots ? first_slot : first);
    parallel.for_ranges(size, kPlacesPerRange, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t at = params.priority_of_slots ? group.slot_at(static_cast<uint32_t>(i)) : i;
        scratch.keys[i] = sort_key(priority[at]) << 32 | static_cast<uint64_t>(i);
      }
    });
    uint64_t* sorted = sort(scratch, size, parallel);
    (params.priority_of_slots ? group.slots_by_priority : group.tokens_by_priority) = sorted;
    if (params.priority_of_slots && group.choices_first) {
      parallel.for_ranges(size, kPlacesPerRange, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) sorted[i] = group.slot_at(static_cast<uint32_t>(sorted[i]));
      });
    }
  }
  int32_t* positions = params.positions == nullptr ? nullptr : params.positions + first_slot;
  number_slots(group, scratch, positions, params.counts + index * params.num_experts, parallel);
}

template <class Id>
Status do_groups(const SlotPositionsParams& params, const Parallel& parallel) {
  const bool by_group = params.num_groups >= parallel.num_threads;
  const int64_t workers = by_group ? parallel.num_threads : 1;
  const bool sorts = params.priority != nullptr && params.positions != nullptr;
  const int64_t group_tokens = std::min(params.group_size, params.num_tokens);
  const int64_t group_slots = group_tokens * params.top_k;
  const int64_t sorted = !sorts ? 0 : params.priority_of_slots ? group_slots : group_tokens;
  const int64_t bins = sorts ? std::max(params.num_experts, kDigits) : params.num_experts;
  // Counters of all ranges together stay below what they count.
  const int64_t most = by_group ? 1 : parallel.num_threads;
  const int64_t ranges = std::clamp<int64_t>(group_slots / std::max(bins, kPlacesPerRange), 1, most);

  const std::unique_ptr<int32_t[]> counters(new (std::nothrow) int32_t[static_cast<size_t>(workers * ranges * bins)]);
  const std::unique_ptr<uint64_t[]> keys(new (std::nothrow) uint64_t[static_cast<size_t>(workers * 2 * sorted)]);
  if (counters == nullptr || keys == nullptr) return Status::kUnsupported;
  const auto scratch_of = [&](int64_t worker) {
    uint64_t* own = keys.get() + worker * 2 * sorted;
    return Scratch{ranges, counters.get() + worker * ranges * bins, own, own + sorted};
  };
  if (!by_group) {
    for (int64_t group = 0; group < params.num_groups; ++group) do_group<Id>(params, group, scratch_of(0), parallel);
    return Status::kOk;
  }
  const Parallel alone = {1, nullptr};
  parallel.for_each(workers, [&](int64_t worker) {
    const int64_t end = begin_of(worker + 1, workers, params.num_groups);
    for (int64_t group = begin_of(worker, workers, params.num_groups); group < end; ++group) {
      do_group<Id>(params, group, scratch_of(worker), alone);
    }
  });
  return Status::kOk;
}

}  // namespace

Status slot_positions(const SlotPositionsParams& params, const Parallel& parallel) {
  if (params.num_tokens < 0 || params.top_k < 0 || params.num_experts < 0 || params.group_size < 1 ||
      params.num_groups < 0) {
    return Status::kInvalidArgument;
  }
  return params.ids_are_int64 ? do_groups<int64_t>(params, parallel) : do_groups<int32_t>(params, parallel);
}

}  // namespace moe::cpu
