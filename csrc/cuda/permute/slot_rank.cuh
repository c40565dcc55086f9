// Counting slots per expert and ranking them, for any group of threads: the parts that the kernels of permute share.
#pragma once

#include <type_traits>

#include "cuda/common/fast_divide.h"
#include "cuda/permute/block_scan.cuh"

namespace moe::cuda {

// Slots in the order in which they are counted: slot by slot, or with all first choices before all second ones. What
// is below takes anything else with a count, num_experts, at and expert as well.
template <class Id>
struct Slots {
  const Id* ids;
  uint32_t count;
  uint32_t num_experts;
  uint32_t top_k = 1;
  bool choices_first = false;
  FastDivide num_tokens;  // with choices_first

  // The slot in place i of the order.
  __device__ uint32_t at(uint32_t i) const {
    if (!choices_first) return i;
    const uint32_t k = num_tokens(i);
    return (i - k * num_tokens.divisor()) * top_k + k;
  }

  // -1: none. Negative ids become huge, so one comparison finds every sentinel.
  __device__ int32_t expert(uint32_t slot) const {
    const Id id = ids[slot];
    const bool exists = static_cast<std::make_unsigned_t<Id>>(id) < num_experts;
    return exists ? static_cast<int32_t>(id) : -1;
  }
};

// Adds the slots in places begin + thread, begin + thread + threads, ... below end to counters[expert * stride].
template <class Places>
__device__ void count_slots(const Places& slots, uint32_t begin, uint32_t end, int thread, int threads,
                            int32_t* counters, int64_t stride) {
#pragma unroll 4
  for (uint32_t i = begin + thread; i < end; i += threads) {
    const int32_t expert = slots.expert(slots.at(i));
    if (expert >= 0) atomicAdd(&counters[expert * stride], 1);
  }
}

// One warp walks the places begin .. end in order. next[expert * stride] is the rank of the expert's next slot and
// belongs to this warp alone. Calls place(slot, expert, rank), for slots of no expert with -1 and 0.
template <class Places, class Place>
__device__ void rank_slots(const Places& slots, uint32_t begin, uint32_t end, int32_t* next, int64_t stride,
                           const Place& place) {
  constexpr int kSteps = 4;  // whose ids are in flight together
  constexpr int32_t kOutside = -2;
  const int lane = lane_of(threadIdx.x);
  const uint32_t lanes_before = (1u << lane) - 1;
  for (uint32_t first = begin; first < end; first += kSteps * 32) {
    uint32_t slot[kSteps];
    int32_t expert[kSteps];
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      const uint32_t i = first + step * 32 + lane;
      slot[step] = i < end ? slots.at(i) : 0;
      expert[step] = i < end ? slots.expert(slot[step]) : kOutside;
    }
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      const uint32_t peers = __match_any_sync(kAllLanes, expert[step]);
      const int before = __popc(peers & lanes_before);
      int32_t rank = 0;
      if (expert[step] >= 0) rank = next[expert[step] * stride] + before;
      __syncwarp();
      if (expert[step] >= 0 && before == 0) next[expert[step] * stride] = rank + __popc(peers);
      __syncwarp();
      if (expert[step] != kOutside) place(slot[step], expert[step], rank);
    }
  }
}

}  // namespace moe::cuda
