// The best tokens of each expert, without a sort of its column. Columns are read sixteen at a time, row by row, so that
// every access is to whole cache lines. Each column keeps a list of what exceeds its threshold; a full list is cut down
// to the best `capacity`, the last of which is the new threshold. Most rows then exceed no threshold and cost one
// comparison of a vector. The first threshold is guessed from a sample; a column where that was too high is read again.
// Where there are fewer columns than threads, rows are cut too, and what their parts kept is merged: the order of
// tokens is total, so any cut gives the same.
#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstring>
#include <functional>

#include "cpu/assign/assign.h"
#include "cpu/assign/order.h"
#include "cpu/scratch.h"

namespace moe::cpu {

namespace {

using assigning::Entry;
using assigning::kInfinity;

constexpr int64_t kColumns = 16;

struct Cut {
  int64_t blocks;  // of columns
  int64_t ranges;  // of the rows of a group
  int64_t room;    // of a list

  Cut(const ExpertChoiceParams& p, const Parallel& parallel) {
    constexpr int64_t kMinRows = 4096;
    blocks = (p.num_experts + kColumns - 1) / kColumns;
    room = std::min(2 * p.capacity + 64, p.group_size);
    const int64_t lists = std::max<int64_t>(p.num_groups * blocks, 1);
    const int64_t most = std::min(p.group_size / kMinRows, p.group_size / std::max<int64_t>(2 * p.capacity, 1));
    ranges = std::clamp<int64_t>((parallel.num_threads + lists - 1) / lists, 1, std::max<int64_t>(most, 1));
  }
};

// The lists of one block of columns and one range of rows.
template <class A>
class Lists {
 public:
  Lists(const ExpertChoiceParams& p, int64_t room, Entry<A>* memory) : p_(p), room_(room), memory_(memory) {
    for (int64_t c = 0; c < kColumns; ++c) limits_[c] = -kInfinity<A>;
  }

  void run(int64_t begin, int64_t end, int64_t first_column) {
    const bool guessed = guess(begin, end, first_column);
    scan(begin, end, first_column);
    if (!guessed) return;
    bool again = false;
    for (int64_t c = 0; c < kColumns && first_column + c < p_.num_experts; ++c) {
      const bool too_few = counts_[c] < p_.capacity;
      again |= too_few;
      limits_[c] = too_few ? -kInfinity<A> : kInfinity<A>;
      skips_[c] = !too_few;
      if (too_few) counts_[c] = 0;
    }
    if (again) scan(begin, end, first_column);
  }

  // What a column kept, at most `capacity` entries in any order.
  Entry<A>* kept(int64_t column, int64_t* count) {
    if (counts_[column] > p_.capacity) cut(column);
    *count = counts_[column];
    return memory_ + column * room_;
  }

 private:
  bool takes_part(int64_t token) const { return p_.token_mask == nullptr || p_.token_mask[token] != 0; }

  // Thresholds that a little more than `capacity` scores will probably exceed. False: there are none.
  bool guess(int64_t begin, int64_t end, int64_t first_column) {
    constexpr int64_t kMinRows = 1024, kSample = 256;
    if (end - begin < kMinRows || p_.capacity > (end - begin) / 4) return false;
    int64_t tokens[kSample], size = 0;
    for (int64_t i = 0; i < kSample; ++i) {
      const int64_t t = begin + (end - begin) * i / kSample;
      if (takes_part(t)) tokens[size++] = t;
    }
    const double expected = static_cast<double>(p_.capacity) * kSample / static_cast<double>(end - begin);
    const int64_t place = static_cast<int64_t>(expected + 3 * std::sqrt(expected) + 3);
    if (place >= size) return false;
    for (int64_t c = 0; c < kColumns && first_column + c < p_.num_experts; ++c) {
      const A* scores = static_cast<const A*>(p_.scores) + first_column + c;
      decltype(assigning::rank(A(0))) keys[kSample];
      for (int64_t i = 0; i < size; ++i) keys[i] = assigning::rank(scores[tokens[i] * p_.scores_stride]);
      std::nth_element(keys, keys + place, keys + size, std::greater<>());
      limits_[c] = limit_at(assigning::value_of(keys[place]));
    }
    return true;
  }

  void scan(int64_t begin, int64_t end, int64_t first_column) {
    const int64_t columns = std::min(kColumns, p_.num_experts - first_column);
    for (int64_t c = columns; c < kColumns; ++c) limits_[c] = kInfinity<A>;
    const A* scores = static_cast<const A*>(p_.scores) + first_column;
    A row[kColumns] = {};
    for (int64_t t = begin; t < end; ++t) {
      if (!takes_part(t)) continue;
      const A* source = scores + t * p_.scores_stride;
      if (columns == kColumns) {
        std::memcpy(row, source, sizeof(row));
      } else {
        for (int64_t c = 0; c < columns; ++c) row[c] = source[c];
      }
      // Not "greater": NaN is to pass.
      uint8_t passes[kColumns];
      for (int64_t c = 0; c < kColumns; ++c) passes[c] = row[c] <= limits_[c] ? 0 : 1;
      uint64_t halves[2];
      static_assert(sizeof(halves) == sizeof(passes) && std::endian::native == std::endian::little);
      std::memcpy(halves, passes, sizeof(passes));
      if ((halves[0] | halves[1]) == 0) continue;
      for (int64_t half = 0; half < 2; ++half) {
        for (uint64_t left = halves[half]; left != 0; left &= left - 1) {
          const int64_t c = half * 8 + std::countr_zero(left) / 8;
          add(c, row[c], t);
        }
      }
    }
  }

  void add(int64_t column, A score, int64_t token) {
    if (skips_[column]) return;  // NaN gets past every limit
    if (counts_[column] == room_) {
      cut(column);
      if (!(Entry<A>(score, token) > memory_[column * room_ + p_.capacity - 1])) return;
    }
    memory_[column * room_ + counts_[column]++] = Entry<A>(score, token);
  }

  void cut(int64_t column) {
    Entry<A>* list = memory_ + column * room_;
    std::nth_element(list, list + p_.capacity - 1, list + counts_[column], std::greater<>());
    counts_[column] = p_.capacity;
    limits_[column] = limit_at(list[p_.capacity - 1].score());
  }

  // What no score but a larger one gets past. Nothing is larger than NaN, but a comparison with it would let all past.
  static A limit_at(A score) { return score == score ? score : kInfinity<A>; }

  const ExpertChoiceParams& p_;
  const int64_t room_;
  Entry<A>* memory_;
  int64_t counts_[kColumns] = {};
  bool skips_[kColumns] = {};  // has what it needs
  A limits_[kColumns];
};

// Sorts the best of `count` entries into the expert's places.
template <class A>
void write(const ExpertChoiceParams& p, int64_t group, int64_t expert, Entry<A>* list, int64_t count) {
  const int64_t best = std::min(count, p.capacity);
  if (best < count) std::nth_element(list, list + best, list + count, std::greater<>());
  std::sort(list, list + best, std::greater<>());
  int32_t* places = p.token_ids + (group * p.num_experts + expert) * p.capacity;
  for (int64_t c = 0; c < p.capacity; ++c) places[c] = c < best ? list[c].token() : -1;
}

template <class A>
Status choose(const ExpertChoiceParams& p, const Parallel& parallel) {
  if (p.capacity == 0 || p.num_groups == 0) return Status::kOk;
  const Cut cut(p, parallel);
  const int64_t entry = static_cast<int64_t>(sizeof(Entry<A>));
  const int64_t list_bytes = kColumns * cut.room * entry;
  // Of each list that is to be merged: its entries, and how many they are.
  const int64_t parts = cut.ranges > 1 ? p.num_groups * cut.blocks * kColumns * cut.ranges : 0;
  const Workspace workspace(parts * (p.capacity * entry + static_cast<int64_t>(sizeof(int64_t))));
  if (parts > 0 && workspace.data() == nullptr) return Status::kUnsupported;
  Entry<A>* kept = static_cast<Entry<A>*>(workspace.data());
  int64_t* kept_counts = reinterpret_cast<int64_t*>(kept + parts * p.capacity);

  std::atomic<bool> out_of_memory{false};
  parallel.for_each(p.num_groups * cut.blocks * cut.ranges, [&](int64_t task) {
    const int64_t range = task % cut.ranges, block = task / cut.ranges % cut.blocks;
    const int64_t group = task / cut.ranges / cut.blocks;
    void* memory = thread_scratch(list_bytes);
    if (memory == nullptr) {
      out_of_memory = true;
      return;
    }
    Lists<A> lists(p, cut.room, static_cast<Entry<A>*>(memory));
    const int64_t first = group * p.group_size;
    lists.run(first + p.group_size * range / cut.ranges, first + p.group_size * (range + 1) / cut.ranges,
              block * kColumns);
    for (int64_t c = 0; c < kColumns && block * kColumns + c < p.num_experts; ++c) {
      int64_t count = 0;
      Entry<A>* list = lists.kept(c, &count);
      if (cut.ranges == 1) {
        write(p, group, block * kColumns + c, list, count);
      } else {
        const int64_t part = ((group * cut.blocks + block) * kColumns + c) * cut.ranges + range;
        std::copy(list, list + count, kept + part * p.capacity);
        kept_counts[part] = count;
      }
    }
  });
  if (out_of_memory) return Status::kUnsupported;
  if (cut.ranges == 1) return Status::kOk;

  parallel.for_each(p.num_groups * p.num_experts, [&](int64_t task) {
    const int64_t group = task / p.num_experts, expert = task % p.num_experts;
    const int64_t first = (group * cut.blocks * kColumns + expert) * cut.ranges;
    Entry<A>* list = kept + first * p.capacity;
    int64_t count = 0;
    for (int64_t range = 0; range < cut.ranges; ++range) {
      const Entry<A>* part = list + range * p.capacity;
      if (part != list + count) std::copy(part, part + kept_counts[first + range], list + count);
      count += kept_counts[first + range];
    }
    write(p, group, expert, list, count);
  });
  return Status::kOk;
}

// topk_ids of tokens [begin, end) from the tokens that the experts have chosen. counts: one for each token.
template <class A>
void invert(const ExpertChoiceParams& p, int64_t begin, int64_t end, int32_t* counts) {
  std::fill(p.topk_ids + begin * p.max_experts, p.topk_ids + end * p.max_experts, -1);
  std::fill(counts + begin, counts + end, 0);
  if (p.capacity == 0) return;
  for (int64_t group = begin / p.group_size; group <= (end - 1) / p.group_size; ++group) {
    for (int64_t expert = 0; expert < p.num_experts; ++expert) {
      const int32_t* places = p.token_ids + (group * p.num_experts + expert) * p.capacity;
      for (int64_t c = 0; c < p.capacity && places[c] >= 0; ++c) {
        const int64_t t = places[c];
        if (t < begin || t >= end) continue;
        // Into the sorted list of the token; experts come in order, so equals stay behind.
        const A* scores = static_cast<const A*>(p.scores) + t * p.scores_stride;
        int32_t* ids = p.topk_ids + t * p.max_experts;
        const auto key = assigning::rank(scores[expert]);
        int64_t place = counts[t];
        if (place == p.max_experts) {
          if (assigning::rank(scores[ids[place - 1]]) >= key) continue;
          --place;
        } else {
          ++counts[t];
        }
        for (; place > 0 && assigning::rank(scores[ids[place - 1]]) < key; --place) ids[place] = ids[place - 1];
        ids[place] = static_cast<int32_t>(expert);
      }
    }
  }
}

template <class A>
Status run(const ExpertChoiceParams& p, const Parallel& parallel) {
  const Status chosen = choose<A>(p, parallel);
  if (chosen != Status::kOk) return chosen;
  constexpr int64_t kMinTokens = 4096;
  const int64_t num_tokens = p.num_groups * p.group_size;
  const Workspace counts(num_tokens * static_cast<int64_t>(sizeof(int32_t)));
  if (num_tokens > 0 && counts.data() == nullptr) return Status::kUnsupported;
  parallel.for_ranges(num_tokens, kMinTokens, [&](int64_t begin, int64_t end) {
    invert<A>(p, begin, end, static_cast<int32_t*>(counts.data()));
  });
  return Status::kOk;
}

}  // namespace

Status expert_choice(const ExpertChoiceParams& params, const Parallel& parallel) {
  if (params.capacity < 0 || params.capacity > params.group_size || params.num_experts < 1 || params.max_experts < 1) {
    return Status::kInvalidArgument;
  }
  return params.dtype == DType::kFloat64 ? run<double>(params, parallel) : run<float>(params, parallel);
}

}  // namespace moe::cpu
