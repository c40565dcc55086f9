// Who knows of whose memory accesses: vector clocks over the warps of a cluster.
//
// An access is stamped with its agent (a warp, or an asynchronous engine behind one mbarrier), its lane and the agent's
// time. A release publishes what the releasing lanes know, an acquire takes it over; an access is ordered before
// another when the later one's lane knows of it. Fences are further clocks that travel the same way.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "core/instruction.h"

namespace vgpu {

using Time = uint32_t;
using Agent = uint32_t;
constexpr Time kMaxTime = (1u << 17) - 1;
constexpr Time kFirstTime = 2;       // so that no stamp looks like kKnownToAll
constexpr uint32_t kWholeWarp = 32;  // "lane" of what a warp does as one: ldmatrix, wgmma, bulk copies

// Some lanes' accesses only.
struct PartialKnowledge {
  Agent agent;
  LaneMask lanes;
  Time time;
};

struct Knowledge {
  std::vector<Time> seen;    // by agent: every access up to this time, of all its lanes
  std::vector<Time> fenced;  // by agent: ordinary writes up to this time were fenced for the async proxy
  std::vector<Time> wide;    // by agent: writes up to this time were fenced for the whole GPU (or the cluster)
  std::vector<PartialKnowledge> partial;

  explicit Knowledge(size_t agents = 0) : seen(agents), fenced(agents), wide(agents) {}
  void join(const Knowledge& other);
  void clear();
  bool covers(Agent agent, uint32_t lane, Time time) const {
    return seen[agent] >= time || (!partial.empty() && covers_partially(agent, lane, time));
  }
  bool covers_partially(Agent agent, uint32_t lane, Time time) const;
};

// One warp's clocks. Lanes that acquired something alone know more than `all` does, until the warp synchronises.
struct WarpClocks {
  Agent self = 0;
  Time now = kFirstTime;
  Knowledge all;
  std::array<std::unique_ptr<Knowledge>, kLanes> extra;
  LaneMask lanes_with_extra = 0;

  void reset(Agent agent, size_t agents);
  // What `lanes` publish; ticks. `alive`: the lanes of the warp that have not exited.
  Knowledge release(LaneMask lanes, LaneMask alive);
  void release_into(Knowledge& target, LaneMask lanes, LaneMask alive);
  void acquire(const Knowledge& knowledge, LaneMask lanes, LaneMask alive);
  // bar.warp.sync and whatever orders the memory accesses of these lanes.
  void synchronise(LaneMask lanes, LaneMask alive);
  // Shuffles and votes: what one of the lanes acquired from elsewhere the others know too, their own accesses not.
  void share_acquired(LaneMask lanes, LaneMask alive);
  void fence_proxy();
  void fence_wide();
  bool knows(uint32_t lane, Agent agent, uint32_t by_lane, Time time) const;
  bool knows_fenced(uint32_t lane, Agent agent, Time time) const;

 private:
  template <class F>
  bool lanes_know(uint32_t lane, F&& known) const;
};

}  // namespace vgpu
