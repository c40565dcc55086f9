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
  int32_t top;             // how many of a group's best values are summed
  int32_t lanes;           // that work on one group: a power of two
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

// group_keys[g] = key of the sum of the group's best values, largest first.
template <class A>
__device__ void score_groups(const Groups& groups, const key_t<A>* keys, key_t<A>* group_keys) {
  const int lane = threadIdx.x % 32, part = lane % groups.lanes;
  const int steps = (groups.size + groups.lanes - 1) / groups.lanes;
  for (int first_group = 0; first_group < groups.count; first_group += 32 / groups.lanes) {
    const int group = first_group + lane / groups.lanes;
    const int members = group < groups.count ? groups.size : 0;
    const int64_t base = static_cast<int64_t>(group) * groups.size;
    const int skew = group % steps;  // groups begin at different steps, else their lanes would meet in one bank
    Place<A> found = Place<A>::first();
    A sum = 0;
    for (int n = 0; n < groups.top; ++n) {
      Place<A> best = Place<A>::last();
      for (int step = 0; step < steps; ++step) {
        const int turn = step + skew < steps ? step + skew : step + skew - steps;
        const int member = part + groups.lanes * turn;
        if (member >= members) continue;
        const Place<A> place = {keys[base + member], member};
        if (found.before(place) && place.before(best)) best = place;
      }
      found = first_of(best, groups.lanes);
      const A value = value_of(found.key);
      sum = n == 0 ? value : sum + value;
    }
    if (part == 0 && members > 0) group_keys[group] = rank(sum);
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
