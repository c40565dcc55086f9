// Group-limited selection: the experts form equal groups of consecutive ones, and only those of the best groups keep
// their keys. One warp a row, whose keys stand in memory that its lanes share.
#pragma once

#include "cuda/route/row.cuh"

namespace moe::cuda::routing {

// A place in an order without ties: larger keys first, then lower indices.
template <class A>
struct Place {
  key_t<A> key;
  int32_t index;

  __device__ static Place first() { return {KeyOf<A>::kHighest, -1}; }
  __device__ static Place last() { return {KeyOf<A>::kLowest, INT32_MAX}; }
  __device__ bool before(const Place& other) const {
    return key > other.key || (key == other.key && index < other.index);
  }
};

// The first of what `width` neighbouring lanes hold.
template <class A>
__device__ Place<A> first_of(Place<A> mine, int width) {
  if constexpr (sizeof(A) == 4) {
    if (width == 32) {
      const int32_t key = Lanes<32>::maximum(mine.key);
      return {key, Lanes<32>::minimum(mine.key == key ? mine.index : INT32_MAX)};
    }
  }
  for (int step = width / 2; step > 0; step /= 2) {
    const Place<A> other = {__shfl_xor_sync(kWholeWarp, mine.key, step), __shfl_xor_sync(kWholeWarp, mine.index, step)};
    if (other.before(mine)) mine = other;
  }
  return mine;
}

struct Groups {
  int32_t count;
  int32_t size;
  int32_t kept;
  int32_t top;    // how many of a group's best values are summed
  int32_t lanes;  // that work on one group: a power of two
  bool fill_with_zero;

  static Groups of(const RouteParams& p) {
    Groups groups = {};
    groups.count = static_cast<int32_t>(p.num_groups);
    groups.size = static_cast<int32_t>(p.num_experts / p.num_groups);
    groups.kept = static_cast<int32_t>(p.topk_groups);
    groups.top = static_cast<int32_t>(p.group_top < groups.size ? p.group_top : groups.size);
    groups.lanes = 32;
    while (groups.lanes > 1 && 32 / groups.lanes < groups.count) groups.lanes /= 2;
    groups.fill_with_zero = p.group_fill == GroupFill::kZero;
    return groups;
  }
};

// The keys of one group, of which each of its lanes sees a part.
template <class A>
class Members {
 public:
  __device__ Members(const Groups& groups, int group, const key_t<A>* keys)
      : keys_(keys + static_cast<int64_t>(group) * groups.size),
        size_(group < groups.count ? groups.size : 0),
        lanes_(groups.lanes),
        part_(static_cast<int>(threadIdx.x % groups.lanes)),
        steps_((groups.size + groups.lanes - 1) / groups.lanes),
        skew_(group % steps_) {}

  __device__ A sum_of_best(int top) const { return top <= 2 ? best_two(top) : best_of_many(top); }

 private:
  // Groups begin at different steps, else their lanes would meet in one bank.
  template <class Body>
  __device__ void for_each(const Body& body) const {
    int turn = skew_;
    for (int step = 0; step < steps_; ++step) {
      const int member = part_ + lanes_ * turn;
      turn = turn + 1 < steps_ ? turn + 1 : 0;
      if (member < size_) body(member, keys_[member]);
    }
  }

  __device__ A best_two(int top) const {
    key_t<A> first = KeyOf<A>::kLowest, second = KeyOf<A>::kLowest;
    const auto add = [&](key_t<A> high, key_t<A> low) {
      second = max(max(second, low), min(first, high));
      first = max(first, high);
    };
    for_each([&](int, key_t<A> key) { add(key, KeyOf<A>::kLowest); });
    for (int step = lanes_ / 2; step > 0; step /= 2) {
      const key_t<A> high = __shfl_xor_sync(kWholeWarp, first, step);
      add(high, __shfl_xor_sync(kWholeWarp, second, step));
    }
    return top == 1 ? value_of(first) : value_of(first) + value_of(second);
  }

  __device__ A best_of_many(int top) const {
    Place<A> found = Place<A>::first();
    A sum = 0;
    for (int n = 0; n < top; ++n) {
      Place<A> best = Place<A>::last();
      for_each([&](int member, key_t<A> key) {
        const Place<A> place = {key, member};
        if (found.before(place) && place.before(best)) best = place;
      });
      found = first_of(best, lanes_);
      sum = n == 0 ? value_of(found.key) : sum + value_of(found.key);
    }
    return sum;
  }

  const key_t<A>* keys_;
  int size_, lanes_, part_, steps_, skew_;
};

// group_keys[g] = key of the sum of the group's best values, largest first.
template <class A>
__device__ void score_groups(const Groups& groups, const key_t<A>* keys, key_t<A>* group_keys) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  for (int first = 0; first < groups.count; first += 32 / groups.lanes) {
    const int group = first + lane / groups.lanes;
    const key_t<A> key = rank(Members<A>(groups, group, keys).sum_of_best(groups.top));
    if (lane % groups.lanes == 0 && group < groups.count) group_keys[group] = key;
  }
}

// The last of the groups that are kept.
template <class A>
__device__ Place<A> last_kept_group(const Groups& groups, const key_t<A>* group_keys) {
  Place<A> found = Place<A>::first();
  for (int n = 0; n < groups.kept; ++n) {
    Place<A> best = Place<A>::last();
    for (int64_t group = threadIdx.x % 32; group < groups.count; group += 32) {
      const Place<A> place = {group_keys[group], static_cast<int32_t>(group)};
      if (found.before(place) && place.before(best)) best = place;
    }
    found = first_of(best, 32);
  }
  return found;
}

// The key of an expert after the selection of groups.
template <class A>
__device__ key_t<A> filtered(const Groups& groups, const Place<A>& last_kept, const key_t<A>* group_keys, int32_t group,
                             key_t<A> key) {
  const Place<A> place = {group_keys[group], group};
  if (!last_kept.before(place)) return key;
  return groups.fill_with_zero ? rank(A(0)) : rank(-infinity(A()));
}

}  // namespace moe::cuda::routing
