// The largest keys of a row, in order, equal ones by the lower index. Exact: nothing is packed or rounded.
//
// With one key a lane, a round is a maximum, a ballot and the lowest holder. With more, every lane's own maximum comes
// first: the k-th largest of those bounds the k-th largest key from below, so only what reaches it, rarely more than
// twice top_k keys, can be chosen. If that fits a warp, it is dealt out one a lane; if not, the rounds go over all
// keys.
#pragma once

#include "cuda/route/row.cuh"

namespace moe::cuda::routing {

struct alignas(8) Candidate {
  int32_t key;
  int32_t expert;
};

// Lane k < top_k <= kLanes gets the lane that holds the k-th of the keys; other lanes get nothing useful.
template <int kLanes>
__device__ int select_lanes(int32_t key, int top_k) {
  int chosen = 0;
  for (int k = 0; k < top_k; ++k) {
    const uint32_t holders = Lanes<kLanes>::ballot(key == Lanes<kLanes>::maximum(key));
    const int winner = __ffs(static_cast<int>(holders)) - 1;
    if (Lanes<kLanes>::lane() == winner) key = KeyOf<float>::kLowest;
    if (Lanes<kLanes>::lane() == k) chosen = winner;
  }
  return chosen;
}

// A lower bound of the top_k-th largest key: so many lanes hold at least that.
__device__ inline int32_t kth_lane_maximum(int32_t lane_maximum, int top_k) {
  int32_t bound = KeyOf<float>::kLowest;
  for (int reached = 0; reached < top_k;) {
    bound = Lanes<32>::maximum(lane_maximum);
    const bool reaches = lane_maximum == bound;
    reached += __popc(Lanes<32>::ballot(reaches));
    if (reaches) lane_maximum = KeyOf<float>::kLowest;
  }
  return bound;
}

// Lane k < top_k <= kLanes gets the expert of the k-th largest key. candidates: 32 for this warp alone. Spoils the
// keys.
template <int kLanes, int kRegisters>
__device__ int32_t select(int32_t (&keys)[kRegisters], int top_k, Candidate* candidates) {
  using Group = Lanes<kLanes>;
  if constexpr (kRegisters == 1) {
    return select_lanes<kLanes>(keys[0], top_k);
  } else {
    static_assert(kLanes == 32);
    const int lane = Group::lane();
    int32_t best = keys[0];
#pragma unroll
    for (int r = 1; r < kRegisters; ++r) best = max(best, keys[r]);

    constexpr int kMaxFiltered = 16;  // with more to choose, what reaches the bound seldom fits
    int count = INT_MAX;
    if (top_k <= kMaxFiltered) {
      const int32_t bound = kth_lane_maximum(best, top_k);
      const uint32_t lower_lanes = (1u << lane) - 1;
      count = 0;
#pragma unroll
      for (int r = 0; r < kRegisters; ++r) {
        const bool reaches = keys[r] >= bound;
        const uint32_t reaching = Group::ballot(reaches);
        const int place = count + __popc(reaching & lower_lanes);
        if (reaches && place < 32) candidates[place] = {keys[r], r * 32 + lane};
        count += __popc(reaching);
      }
    }
    if (count <= 32) {
      __syncwarp();
      // By place is by index.
      Candidate mine = {KeyOf<float>::kLowest, 0};
      if (lane < count) mine = candidates[lane];
      __syncwarp();
      return Group::from(mine.expert, select_lanes<32>(mine.key, top_k));
    }

    int32_t chosen = 0;
    for (int k = 0; k < top_k; ++k) {
      const int32_t largest = Group::maximum(best);
      int32_t expert = INT32_MAX;
#pragma unroll
      for (int r = kRegisters - 1; r >= 0; --r) expert = keys[r] == largest ? r * 32 + lane : expert;
      expert = Group::minimum(expert);
      best = KeyOf<float>::kLowest;
#pragma unroll
      for (int r = 0; r < kRegisters; ++r) {
        if (r * 32 + lane == expert) keys[r] = KeyOf<float>::kLowest;
        best = max(best, keys[r]);
      }
      if (lane == k) chosen = expert;
    }
    return chosen;
  }
}

}  // namespace moe::cuda::routing
