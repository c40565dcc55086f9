#include "check/clocks.h"

#include <algorithm>

namespace vgpu {
namespace {

// Beyond this many, single lanes' knowledge is taken for the whole warp's: rather a race missed than a false one.
constexpr size_t kMaxPartial = 16;

void add_partial(Knowledge& k, const PartialKnowledge& p) {
  if (k.seen[p.agent] >= p.time) return;
  for (PartialKnowledge& old : k.partial) {
    if (old.agent == p.agent && old.time == p.time) {
      old.lanes |= p.lanes;
      return;
    }
    if (old.agent == p.agent && old.lanes == p.lanes) {
      old.time = std::max(old.time, p.time);
      return;
    }
  }
  if (k.partial.size() >= kMaxPartial) {
    k.seen[p.agent] = std::max(k.seen[p.agent], p.time);
    return;
  }
  k.partial.push_back(p);
}

bool covers_all(const Knowledge& k, const PartialKnowledge& p) {
  for (LaneMask m = p.lanes; m != 0; m &= m - 1) {
    if (!k.covers(p.agent, static_cast<uint32_t>(__builtin_ctz(m)), p.time)) return false;
  }
  return true;
}

bool is_within(const Knowledge& part, const Knowledge& whole) {
  for (size_t a = 0; a < part.seen.size(); ++a) {
    if (part.seen[a] > whole.seen[a] || part.fenced[a] > whole.fenced[a] || part.wide[a] > whole.wide[a]) return false;
  }
  for (const PartialKnowledge& p : part.partial) {
    if (!covers_all(whole, p)) return false;
  }
  return true;
}

void prune(Knowledge& k) {
  std::erase_if(k.partial, [&](const PartialKnowledge& p) { return k.seen[p.agent] >= p.time; });
}

}  // namespace

void Knowledge::join(const Knowledge& other) {
  if (seen.size() < other.seen.size()) {
    seen.resize(other.seen.size());
    fenced.resize(other.seen.size());
    wide.resize(other.seen.size());
  }
  for (size_t a = 0; a < other.seen.size(); ++a) {
    seen[a] = std::max(seen[a], other.seen[a]);
    fenced[a] = std::max(fenced[a], other.fenced[a]);
    wide[a] = std::max(wide[a], other.wide[a]);
  }
  for (const PartialKnowledge& p : other.partial) add_partial(*this, p);
  if (!partial.empty()) prune(*this);
}

void Knowledge::clear() {
  std::fill(seen.begin(), seen.end(), 0);
  std::fill(fenced.begin(), fenced.end(), 0);
  std::fill(wide.begin(), wide.end(), 0);
  partial.clear();
}

bool Knowledge::covers_partially(Agent agent, uint32_t lane, Time time) const {
  for (const PartialKnowledge& p : partial) {
    // What a warp does as one, whichever of its lanes goes on has behind it.
    bool by_these = lane == kWholeWarp || (lane < kLanes && (p.lanes >> lane & 1));
    if (p.agent == agent && p.time >= time && by_these) return true;
  }
  return false;
}

void WarpClocks::reset(Agent agent, size_t agents) {
  self = agent;
  now = kFirstTime;
  all.seen.assign(agents, 0);
  all.fenced.assign(agents, 0);
  all.wide.assign(agents, 0);
  all.partial.clear();
  for (auto& e : extra) e.reset();
  lanes_with_extra = 0;
}

void WarpClocks::release_into(Knowledge& target, LaneMask lanes, LaneMask alive) {
  target.join(all);
  for (LaneMask m = lanes & lanes_with_extra; m != 0; m &= m - 1) target.join(*extra[__builtin_ctz(m)]);
  if ((lanes & alive) == alive) {
    target.seen[self] = now;
  } else {
    add_partial(target, {self, lanes, now});
  }
  ++now;
}

Knowledge WarpClocks::release(LaneMask lanes, LaneMask alive) {
  Knowledge k(all.seen.size());
  release_into(k, lanes, alive);
  return k;
}

namespace {

// What each lane that is alive knows beyond `all`, the warp knows.
void share_common(WarpClocks& c, LaneMask alive) {
  if (alive == 0 || (alive & ~c.lanes_with_extra)) return;
  Knowledge common = *c.extra[__builtin_ctz(alive)];
  for (LaneMask m = alive & (alive - 1); m != 0; m &= m - 1) {
    const Knowledge& e = *c.extra[__builtin_ctz(m)];
    for (size_t a = 0; a < common.seen.size(); ++a) {
      common.seen[a] = std::min(common.seen[a], e.seen[a]);
      common.fenced[a] = std::min(common.fenced[a], e.fenced[a]);
      common.wide[a] = std::min(common.wide[a], e.wide[a]);
    }
    std::erase_if(common.partial, [&](const PartialKnowledge& p) { return !covers_all(e, p); });
  }
  c.all.join(common);
  for (LaneMask m = c.lanes_with_extra; m != 0; m &= m - 1) {
    auto& e = c.extra[__builtin_ctz(m)];
    if (!is_within(*e, c.all)) continue;
    e.reset();
    c.lanes_with_extra &= ~(m & (~m + 1));
  }
}

}  // namespace

void WarpClocks::acquire(const Knowledge& knowledge, LaneMask lanes, LaneMask alive) {
  if ((lanes & alive) == alive) {
    all.join(knowledge);
    return;
  }
  for (LaneMask m = lanes; m != 0; m &= m - 1) {
    auto& e = extra[__builtin_ctz(m)];
    if (e == nullptr) e = std::make_unique<Knowledge>(all.seen.size());
    e->join(knowledge);
  }
  lanes_with_extra |= lanes;
  share_common(*this, alive);
}

void WarpClocks::synchronise(LaneMask lanes, LaneMask alive) {
  if ((lanes & alive) == alive) {
    for (LaneMask m = lanes_with_extra; m != 0; m &= m - 1) {
      auto& e = extra[__builtin_ctz(m)];
      all.join(*e);
      e.reset();
    }
    lanes_with_extra = 0;
    all.seen[self] = now++;
    return;
  }
  Knowledge together(all.seen.size());
  for (LaneMask m = lanes & lanes_with_extra; m != 0; m &= m - 1) together.join(*extra[__builtin_ctz(m)]);
  add_partial(together, {self, lanes, now++});
  acquire(together, lanes, alive);
}

void WarpClocks::share_acquired(LaneMask lanes, LaneMask alive) {
  if ((lanes & lanes_with_extra) == 0) return;
  Knowledge together(all.seen.size());
  for (LaneMask m = lanes & lanes_with_extra; m != 0; m &= m - 1) together.join(*extra[__builtin_ctz(m)]);
  std::erase_if(together.partial, [&](const PartialKnowledge& p) { return p.agent == self; });
  acquire(together, lanes, alive);
}

namespace {

// Whatever the warp knows of counts as fenced from here on, its own accesses so far included.
void cover(const WarpClocks& clocks, std::vector<Time>& fenced) {
  auto add = [&](const Knowledge& k) {
    for (size_t a = 0; a < k.seen.size(); ++a) fenced[a] = std::max(fenced[a], k.seen[a]);
    for (const PartialKnowledge& p : k.partial) fenced[p.agent] = std::max(fenced[p.agent], p.time);
  };
  add(clocks.all);
  for (LaneMask m = clocks.lanes_with_extra; m != 0; m &= m - 1) add(*clocks.extra[__builtin_ctz(m)]);
}

}  // namespace

void WarpClocks::fence_proxy() {
  cover(*this, all.fenced);
  all.fenced[self] = now++;
}

void WarpClocks::fence_wide() {
  cover(*this, all.wide);
  all.wide[self] = now++;
}

// What the warp does as one needs the knowledge of each lane.
template <class F>
bool WarpClocks::lanes_know(uint32_t lane, F&& known) const {
  if (lane < kLanes) return (lanes_with_extra >> lane & 1) && known(*extra[lane]);
  if (lanes_with_extra != kAllLanes) return false;
  for (const auto& e : extra) {
    if (!known(*e)) return false;
  }
  return true;
}

bool WarpClocks::knows(uint32_t lane, Agent agent, uint32_t by_lane, Time time) const {
  if (agent == self && (by_lane == lane || by_lane == kWholeWarp || time > now)) return true;
  if (all.covers(agent, by_lane, time)) return true;
  return lanes_know(lane, [&](const Knowledge& k) { return k.covers(agent, by_lane, time); });
}

bool WarpClocks::knows_fenced(uint32_t lane, Agent agent, Time time) const {
  return all.fenced[agent] >= time || lanes_know(lane, [&](const Knowledge& k) { return k.fenced[agent] >= time; });
}

}  // namespace vgpu
