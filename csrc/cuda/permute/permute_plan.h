// How permute cuts its work, from sizes alone.
#pragma once

#include <algorithm>
#include <cstdint>

namespace moe::cuda {

struct PermutePlan {
  bool one_block;        // one launch of one block, else chunks of slots in three launches
  bool shared_counters;  // a warp's counters of all experts fit shared memory, else they lie in the workspace
  int32_t warps;         // of a block, with counters of their own
  uint32_t chunk_slots;  // a multiple of 32
  int32_t num_chunks;
  int64_t workspace_bytes;

  bool operator==(const PermutePlan&) const = default;
};

constexpr int64_t kOneBlockSlots = 16 * 1024;
// 36 KiB, which with the rest stay below the 48 KiB that a block has without asking for more.
constexpr int64_t kMaxSharedCounters = 9 * 1024;

inline PermutePlan plan_permute(int64_t num_slots, int64_t num_experts) {
  constexpr int64_t kSlotsPerWarp = 256, kMaxChunks = 1024;
  PermutePlan plan = {};
  plan.shared_counters = num_experts <= kMaxSharedCounters;
  plan.one_block = plan.shared_counters && num_slots <= kOneBlockSlots;
  const int64_t most_warps = plan.one_block ? std::clamp<int64_t>((num_slots + 31) / 32, 1, 32) : 8;
  const int64_t fitting = kMaxSharedCounters / std::max<int64_t>(num_experts, 1);
  plan.warps = static_cast<int32_t>(std::clamp<int64_t>(fitting, 1, most_warps));
  if (plan.one_block) return plan;
  // At least as many slots as experts, so that the counters need no more memory than the slots' ids.
  const int64_t chunk = std::max({plan.warps * kSlotsPerWarp, num_experts, (num_slots + kMaxChunks - 1) / kMaxChunks});
  plan.chunk_slots = static_cast<uint32_t>((chunk + 31) / 32 * 32);
  plan.num_chunks = static_cast<int32_t>((num_slots + plan.chunk_slots - 1) / plan.chunk_slots);
  plan.workspace_bytes = num_experts * plan.num_chunks * static_cast<int64_t>(sizeof(int32_t));
  return plan;
}

}  // namespace moe::cuda
