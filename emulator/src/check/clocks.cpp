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
    // What the warp did as one, each of its lanes did.
    if (p.agent == agent && p.time >= time && (lane == kWholeWarp || (lane < kLanes && (p.lanes >> lane & 1)))) return true;
  }
  return false;
}

void WarpClocks::reset(Agent agent, size_t agents) {
  self = agent;
  now = 1;
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

bool WarpClocks::knows(uint32_t lane, Agent agent, uint32_t by_lane, Time time) const {
  if (agent == self && (by_lane == lane || by_lane == kWholeWarp || time > now)) return true;
  if (all.covers(agent, by_lane, time)) return true;
  if (lanes_with_extra == 0) return false;
  if (lane < kLanes) return (lanes_with_extra >> lane & 1) && extra[lane]->covers(agent, by_lane, time);
  return false;
}

}  // namespace vgpu
