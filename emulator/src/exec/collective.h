// What shfl, vote, match, redux, elect and bar.warp have in common: the lanes that a member mask names execute
// together.
#pragma once

#include <string>

#include "core/block.h"
#include "core/decode.h"

namespace vgpu {

[[noreturn]] void refuse_members(Warp& warp, const Instruction& i, const uint32_t* members);

// Once the lanes that the masks name are here, calls body(lanes) for each set of lanes that names itself, and goes on.
// A warp may hold several sets at the same instruction (tiles of cooperative groups). Exited lanes are not waited for.
template <class Body>
inline void collective(Warp& warp, const Instruction& i, Slot masks, Body&& body) {
  const uint32_t* members = warp.u32(masks);
  const LaneMask active = warp.active;
  const uint32_t first = members[__builtin_ctz(active)];
  LaneMask others = 0, not_member = 0;
  for (uint32_t l = 0; l < kLanes; ++l) {
    others |= LaneMask{members[l] != first} << l;
    not_member |= LaneMask{!(members[l] >> l & 1)} << l;
  }
  if (active & not_member) refuse_members(warp, i, members);
  if (!(active & others)) {
    if (!converged(warp, i, first & warp.alive)) return;
    if (warp.checks()) warp.clocks.share_acquired(first & warp.alive, warp.alive);
    body(first & warp.alive);
    advance(warp);
    return;
  }
  LaneMask wanted = 0;
  for_lanes(active, [&](uint32_t l) { wanted |= members[l]; });
  if (!converged(warp, i, wanted & warp.alive)) return;
  for (LaneMask rest = warp.active; rest != 0;) {
    const LaneMask set = members[__builtin_ctz(rest)] & warp.alive;
    LaneMask same = 0;
    for_lanes(set & rest, [&](uint32_t l) { same |= LaneMask{members[l] == members[__builtin_ctz(rest)]} << l; });
    if (same != set) refuse_members(warp, i, members);
    if (warp.checks()) warp.clocks.share_acquired(set, warp.alive);
    body(set);
    rest &= ~set;
  }
  advance(warp);
}

// What a collective's decoder sets.
inline void decode_collective(Decoder& d, Execute execute) {
  d.out.execute = execute;
  d.out.kind = InstructionClass::kCollective;
  d.out.control = true;
}

}  // namespace vgpu
