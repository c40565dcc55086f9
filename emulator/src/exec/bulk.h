// What bulk and tensor copies share: destinations in the cluster, the mbarriers that they complete on, stores' groups.
#pragma once

#include "exec/async.h"
#include "exec/mbarrier.h"

namespace vgpu {

// The blocks that a copy goes to, and the offsets of destination and mbarrier, which are the same in each.
struct Multicast {
  uint32_t ranks;
  uint32_t offset;
  uint32_t barrier_offset;
};
// `mask`: slot of the multicast mask, kNoSlot when there is none.
Multicast multicast_of(Warp& warp, const Instruction& i, Slot mask, SharedPlace place, MbarrierPlace barrier,
                       uint32_t lane);

// kStore: st.async, which is not known to need a proxy fence.
enum class LoadKind : uint8_t { kWrite, kStore, kReduce };
struct LoadTarget {
  Block* block;
  Mbarrier* barrier;
  uint32_t offset;
  LoadKind kind;
  PartialKnowledge reducer;
};
// Checks that the destination may be overwritten and is in flight from now on.
LoadTarget begin_load(Warp& warp, const Instruction& i, const Multicast& m, uint32_t rank, uint32_t bytes,
                      uint32_t lane, LoadKind kind = LoadKind::kWrite);
// The bytes are there: `written` of them, from the destination on. The mbarrier counts `transactions`.
void finish_load(Cluster& cluster, const LoadTarget& target, uint32_t written, uint32_t transactions);

// A store in the lane's open bulk group, its source checked and in use. The caller sets its functions.
AsyncOperation& add_bulk_store(Warp& warp, const Instruction& i, uint32_t lane, SharedPlace source, uint32_t bytes);

// With checks: these bytes of global memory are the operation's until its group is waited for.
void note_unawaited_write(Warp& warp, const AsyncOperation& operation, uint64_t begin, uint64_t bytes);

void decode_tensor_prefetch(Decoder& decoder);

}  // namespace vgpu
