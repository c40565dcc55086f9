// A range of slots ranked by the warps of a block, each with counters of its own, and counters of whole chunks. What is
// counted is anything that can be asked like Slots of slot_rank.cuh.
#pragma once

#include "cuda/permute/slot_rank.cuh"

namespace moe::cuda {

// The part of begin .. end that belongs to one of `warps` warps.
struct Range {
  uint32_t begin, end;

  __device__ Range of_warp(int warp, int warps) const {
    const uint32_t size = ((end - begin + warps - 1) / warps + 31) / 32 * 32;
    const uint32_t first = min(begin + warp * size, end);
    return {first, min(first + size, end)};
  }
};

// counters[warp][expert] = slots of the expert in the warp's range. Warps past `warps` only help to clear.
template <class Places>
__device__ void count_per_warp(const Places& slots, const Range& range, int warps, int32_t* counters) {
  const uint32_t experts = slots.num_experts;
  for (uint32_t i = threadIdx.x; i < warps * experts; i += blockDim.x) counters[i] = 0;
  __syncthreads();
  const int warp = static_cast<int>(threadIdx.x) / 32;
  if (warp < warps) {
    const Range own = range.of_warp(warp, warps);
    count_slots(slots, own.begin, own.end, lane_of(threadIdx.x), 32, counters + warp * experts, 1);
  }
  __syncthreads();
}

// Turns an expert's counters into the ranks of the warps' first slots, from `rank` on. Returns the rank after all.
__device__ inline int32_t rank_warps(int32_t* counters, uint32_t num_experts, int warps, uint32_t expert,
                                     int32_t rank) {
  for (int warp = 0; warp < warps; ++warp) {
    int32_t& counter = counters[warp * num_experts + expert];
    const int32_t counted = counter;
    counter = rank;
    rank += counted;
  }
  return rank;
}

template <class Places, class Place>
__device__ void rank_per_warp(const Places& slots, const Range& range, int warps, int32_t* counters,
                              const Place& place) {
  const int warp = static_cast<int>(threadIdx.x) / 32;
  if (warp >= warps) return;
  const Range own = range.of_warp(warp, warps);
  rank_slots(slots, own.begin, own.end, counters + warp * slots.num_experts, 1, place);
}

// An expert's counts become the ranks of the chunks' first slots in the expert. Returns the expert's slots. One warp.
__device__ inline int32_t rank_chunks(int32_t* counters, int32_t num_chunks) {
  constexpr int kSteps = 4;  // whose counts are in flight together
  const int lane = lane_of(threadIdx.x);
  int32_t rank = 0;
  for (int32_t first = 0; first < num_chunks; first += kSteps * 32) {
    int32_t counted[kSteps];
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      const int32_t chunk = first + step * 32 + lane;
      counted[step] = chunk < num_chunks ? counters[chunk] : 0;
    }
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      const int32_t chunk = first + step * 32 + lane;
      const int32_t inclusive = warp_inclusive_scan<Sum<int32_t>>(counted[step], lane);
      if (chunk < num_chunks) counters[chunk] = rank + inclusive - counted[step];
      rank += __shfl_sync(kAllLanes, inclusive, 31);
    }
  }
  return rank;
}

}  // namespace moe::cuda
