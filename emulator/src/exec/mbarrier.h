// mbarrier objects: how instructions of other families find them and arrive at them.
#pragma once

#include <utility>
#include <vector>

#include "core/access.h"
#include "core/block.h"
#include "core/decode.h"

namespace vgpu {

constexpr int64_t kMaxMbarrierCount = (1 << 20) - 1;

// The mbarrier at an operand's address (exec/async.h: set_address), for one lane.
struct MbarrierPlace {
  Mbarrier* barrier;
  Block* block;
};
MbarrierPlace mbarrier_of(Warp& warp, const Instruction& i, uint32_t k, bool cluster, uint32_t lane);

// The operand's space: .shared and .shared::cta are the block's own, .shared::cluster and generic any in the cluster.
struct MbarrierSpace {
  ptx::Space space = ptx::Space::kNone;
  bool cluster = true;
};
MbarrierSpace take_mbarrier_space(Decoder& decoder);

// Asynchronous bytes are expected (positive) or delivered (negative). Faults outside the count's range.
void mbarrier_expect_bytes(Warp& warp, const Instruction& i, Mbarrier& barrier, int64_t bytes, uint32_t lane);

}  // namespace vgpu
