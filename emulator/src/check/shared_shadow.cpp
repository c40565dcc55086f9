#include "check/shared_shadow.h"

#include <algorithm>
#include <bit>

#include "core/block.h"

namespace vgpu {

void SharedShadow::reset(uint32_t bytes, uint32_t granule, size_t agents) {
  shift_ = static_cast<uint32_t>(std::countr_zero(granule));
  granules_ = (bytes + granule - 1) / granule;
  writes_.assign(granules_, 0);
  write_pcs_.resize(granules_);
  reads_.resize(agents);
  for (auto& row : reads_) row.clear();
  readers_.clear();
  atomics_.clear();
  pending_reads_.clear();
}

std::vector<Cell>& SharedShadow::reads_of(Agent agent) {
  auto& row = reads_[agent];
  if (row.empty()) {
    row.assign(granules_, 0);
    readers_.push_back(agent);
  }
  return row;
}

std::string SharedShadow::describe(const Warp& warp, size_t granule, Cell cell) const {
  std::string text = "written at " + place(warp, write_pcs_[granule]);
  Agent agent = agent_of(cell);
  const Cluster& cluster = *warp.block->cluster;
  size_t warps = cluster.agents - kAsyncAgents;
  if (agent == kPendingAgent) return text + " by an asynchronous copy that is still under way";
  if (agent >= warps) return text + " by an asynchronous copy, which this lane has not waited for";
  text += " by warp " + std::to_string(agent % warp.launch->warps_per_block);
  if (lane_of(cell) < kLanes) text += ", lane " + std::to_string(lane_of(cell));
  if (warp.launch->blocks_per_cluster > 1) {
    text += ", of block " + std::to_string(agent / warp.launch->warps_per_block) + " of the cluster";
  }
  return text;
}

void SharedShadow::check_cell(Warp& warp, const Instruction& i, Block& block, uint32_t lane, size_t granule, Cell cell,
                              bool writes, bool proxy) {
  if (cell == kKnownToAll) return;
  int by = lane < kLanes ? static_cast<int>(lane) : -1;
  uint64_t address = granule << shift_;
  const char* verb = writes ? "writes" : "reads";
  auto where = [&] {
    return " shared memory at offset " + std::to_string(address) +
           (&block == warp.block ? "" : " of block " + std::to_string(block.rank) + " of the cluster");
  };
  if (cell == 0) {
    if (writes || !warp.launch->options.uninitialised) return;
    fault_at(warp, i, FaultKind::kUninitialisedShared, verb + where() + ", which nothing has written", by, address);
  }
  Agent agent = agent_of(cell);
  size_t warps = warp.block->cluster->agents - kAsyncAgents;
  if (agent == kPendingAgent || (agent >= warps && !warp.clocks.knows(lane, agent, lane_of(cell), time_of(cell)))) {
    fault_at(warp, i, FaultKind::kAsyncTooEarly, verb + where() + " before an asynchronous copy into it was waited for",
             by, address, describe(warp, granule, cell));
  }
  if (agent >= warps) return;
  if (!warp.clocks.knows(lane, agent, lane_of(cell), time_of(cell))) {
    fault_at(warp, i, FaultKind::kSharedRace, verb + where() + ", with no barrier after another thread's write", by,
             address, describe(warp, granule, cell));
  }
  if (proxy && !warp.clocks.knows_fenced(lane, agent, time_of(cell))) {
    fault_at(warp, i, FaultKind::kMissingProxyFence,
             std::string(verb) + " through the async proxy what ordinary stores wrote at offset " +
                 std::to_string(address) + ", with no fence.proxy.async between",
             by, address, describe(warp, granule, cell));
  }
}

void SharedShadow::read(Warp& warp, const Instruction& i, Block& block, uint32_t lane, uint32_t offset,
                        uint32_t bytes) {
  Cell known = kKnownToAll;
  std::vector<Cell>& mine = reads_of(warp.clocks.self);
  Cell mark = make_cell(warp.clocks.self, lane, warp.clocks.now);
  size_t end = last(offset, bytes);
  for (size_t g = first(offset); g <= end; ++g) {
    Cell cell = writes_[g];
    if (cell != known) {
      check_cell(warp, i, block, lane, g, cell, false, false);
      known = cell;
    }
    // Two lanes that read at the same time are kept as the whole warp.
    Cell old = mine[g];
    mine[g] = old != 0 && time_of(old) == time_of(mark) && old != mark
                  ? make_cell(warp.clocks.self, kWholeWarp + 1, warp.clocks.now)
                  : mark;
  }
}

void SharedShadow::read_by_proxy(Warp& warp, const Instruction& i, Block& block, uint32_t offset, uint32_t bytes) {
  uint32_t lane = std::popcount(warp.active) == 1 ? static_cast<uint32_t>(std::countr_zero(warp.active)) : kWholeWarp;
  Cell known = kKnownToAll;
  size_t end = last(offset, bytes);
  for (size_t g = first(offset); g <= end; ++g) {
    Cell cell = writes_[g];
    if (cell == known) continue;
    check_cell(warp, i, block, lane, g, cell, false, true);
    known = cell;
  }
}

void SharedShadow::check_reads(Warp& warp, const Instruction& i, Block& block, uint32_t lane, uint32_t offset,
                               uint32_t bytes) {
  int by = lane < kLanes ? static_cast<int>(lane) : -1;
  size_t begin = first(offset), end = last(offset, bytes);
  for (Agent a : readers_) {
    const std::vector<Cell>& row = reads_[a];
    Time newest = 0;
    for (size_t g = begin; g <= end; ++g) newest = std::max(newest, time_of(row[g]));
    if (newest <= warp.clocks.all.seen[a]) continue;
    Cell known = 0;
    for (size_t g = begin; g <= end; ++g) {
      Cell cell = row[g];
      if (cell == known) continue;
      if (!warp.clocks.knows(lane, a, lane_of(cell), time_of(cell))) {
        std::string reader = "read by warp " + std::to_string(a % warp.launch->warps_per_block);
        if (lane_of(cell) < kLanes) reader += ", lane " + std::to_string(lane_of(cell));
        fault_at(warp, i, FaultKind::kSharedRace,
                 "writes shared memory at offset " + std::to_string(g << shift_) +
                     ", with no barrier after another thread's read",
                 by, g << shift_, reader);
      }
      known = cell;
    }
  }
  for (const PendingRead& p : pending_reads_) {
    if (p.begin < offset + bytes && offset < p.end) {
      fault_at(warp, i, FaultKind::kAsyncTooEarly,
               "writes shared memory at offset " + std::to_string(offset) + ", which " + p.what + " still reads", by,
               offset, "read at " + place(warp, p.pc));
    }
  }
  for (const auto& barrier : block.mbarriers) {
    if (barrier->live && barrier->offset < offset + bytes && offset < barrier->offset + 8) {
      fault_at(warp, i, FaultKind::kMbarrierMisuse,
               "an ordinary write to the mbarrier at offset " + std::to_string(barrier->offset) + ", which is in use",
               by, offset);
    }
  }
}

void SharedShadow::check_order_of_writes(Warp& warp, const Instruction& i, Block& block, uint32_t lane, uint32_t offset,
                                         uint32_t bytes, bool proxy) {
  Cell known = 0;
  size_t end = last(offset, bytes);
  // Mostly all of it was written by one warp at one time that the whole warp knows of.
  const Cell one = writes_[first(offset)];
  Cell others = 0;
  for (size_t g = first(offset); g <= end; ++g) others |= (writes_[g] ^ one) & ~make_cell(0, 63, 0);
  if (!proxy && others == 0 && agent_of(one) < warp.clocks.all.seen.size() &&
      warp.clocks.all.seen[agent_of(one)] >= time_of(one))
    return;
  for (size_t g = first(offset); g <= end; ++g) {
    Cell cell = writes_[g];
    if (cell == known) continue;
    check_cell(warp, i, block, lane, g, cell, true, proxy);
    known = cell;
  }
}

bool SharedShadow::record_write(Warp& warp, const Instruction& i, uint32_t lane, uint32_t offset, uint32_t bytes) {
  Cell mark = make_cell(warp.clocks.self, lane, warp.clocks.now);
  bool collision = false;
  size_t end = last(offset, bytes);
  for (size_t g = first(offset); g <= end; ++g) {
    Cell old = writes_[g];
    collision |=
        old != mark && agent_of(old) == warp.clocks.self && time_of(old) == warp.clocks.now && write_pcs_[g] == i.index;
    writes_[g] = mark;
    write_pcs_[g] = i.index;
  }
  return collision;
}

void SharedShadow::atomic(Warp& warp, const Instruction& i, Block& block, uint32_t lane, uint32_t offset,
                          uint32_t bytes) {
  if (writes_[first(offset)] == 0) check_cell(warp, i, block, lane, first(offset), 0, false, false);
  strong_write(warp, i, block, lane, offset, bytes);
}

void SharedShadow::strong_write(Warp& warp, const Instruction& i, Block& block, uint32_t lane, uint32_t offset,
                                uint32_t bytes) {
  if (atomics_.empty()) atomics_.assign(granules_, 0);
  size_t end = last(offset, bytes);
  Cell mark = make_cell(warp.clocks.self, lane, warp.clocks.now);
  for (size_t g = first(offset); g <= end; ++g) {
    Cell cell = writes_[g];
    if (cell != atomics_[g]) check_cell(warp, i, block, lane, g, cell, true, false);
  }
  check_reads(warp, i, block, lane, offset, bytes);
  for (size_t g = first(offset); g <= end; ++g) {
    writes_[g] = atomics_[g] = mark;
    write_pcs_[g] = i.index;
  }
}

void SharedShadow::strong_read(Warp& warp, const Instruction& i, Block& block, uint32_t lane, uint32_t offset,
                               uint32_t bytes) {
  size_t end = last(offset, bytes);
  for (size_t g = first(offset); g <= end; ++g) {
    Cell cell = writes_[g];
    if (cell == 0 || atomics_.empty() || cell != atomics_[g]) check_cell(warp, i, block, lane, g, cell, false, false);
  }
}

void SharedShadow::begin_write(Warp& warp, const Instruction& i, Block& block, uint32_t lane, uint32_t offset,
                               uint32_t bytes, bool proxy) {
  check_order_of_writes(warp, i, block, lane, offset, bytes, proxy);
  check_reads(warp, i, block, lane, offset, bytes);
  size_t begin = first(offset), end = last(offset, bytes) + 1;
  std::fill(writes_.begin() + static_cast<ptrdiff_t>(begin), writes_.begin() + static_cast<ptrdiff_t>(end),
            make_cell(kPendingAgent, kWholeWarp, 1));
  std::fill(write_pcs_.begin() + static_cast<ptrdiff_t>(begin), write_pcs_.begin() + static_cast<ptrdiff_t>(end),
            i.index);
}

void SharedShadow::finish_write(Agent agent, uint32_t lane, Time time, uint32_t offset, uint32_t bytes) {
  std::fill(writes_.begin() + static_cast<ptrdiff_t>(first(offset)),
            writes_.begin() + static_cast<ptrdiff_t>(last(offset, bytes)) + 1, make_cell(agent, lane, time));
}

void SharedShadow::finish_read(uint64_t id, Agent agent, Time time) {
  for (size_t k = 0; k < pending_reads_.size();) {
    if (pending_reads_[k].id != id) {
      ++k;
      continue;
    }
    const PendingRead p = pending_reads_[k];
    auto& row = reads_of(agent);
    std::fill(row.begin() + static_cast<ptrdiff_t>(first(p.begin)),
              row.begin() + static_cast<ptrdiff_t>(last(p.begin, p.end - p.begin)) + 1,
              make_cell(agent, kWholeWarp, time));
    pending_reads_.erase(pending_reads_.begin() + static_cast<ptrdiff_t>(k));
  }
}

void SharedShadow::mark_known(uint32_t offset, uint32_t bytes) {
  std::fill(writes_.begin() + static_cast<ptrdiff_t>(first(offset)),
            writes_.begin() + static_cast<ptrdiff_t>(last(offset, bytes)) + 1, kKnownToAll);
}

void SharedShadow::forget_order() {
  for (Cell& c : writes_) {
    if (c != 0 && agent_of(c) != kPendingAgent) c = kKnownToAll;
  }
  for (auto& row : reads_) row.clear();
  readers_.clear();
  atomics_.clear();
}

}  // namespace vgpu
