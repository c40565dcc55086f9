#include "exec/async.h"

#include <algorithm>

namespace vgpu {
namespace {

constexpr uint32_t kWide = 1, kGeneric = 2;

bool is_ready(const AsyncOperation& operation) {
  return !operation.done && operation.complete && (!operation.ready || operation.ready());
}

void read_source(AsyncOperation& operation) {
  if (operation.source_read) return;
  operation.source_read = true;
  if (operation.read_source) operation.read_source();
}

// Its effect happens. It stays in the queue while a bulk group's wait has not come.
void take_effect(AsyncOperation& operation) {
  read_source(operation);
  operation.done = true;
  auto complete = std::move(operation.complete);
  operation.complete = nullptr;
  complete();
  progress(*operation.warp);
}

void remove_finished(Cluster& cluster) {
  std::erase_if(cluster.pending, [](const auto& operation) {
    return operation->done && (!operation->bulk_group || operation->read_awaited);
  });
}

}  // namespace

AsyncOperation& add_async(Warp& warp, const Instruction& i, uint32_t lane, std::string what) {
  Cluster& cluster = *warp.block->cluster;
  auto operation = std::make_unique<AsyncOperation>();
  operation->id = cluster.next_async++;
  operation->warp = &warp;
  operation->lane = lane;
  operation->pc = i.index;
  operation->instruction = &i;
  operation->what = std::move(what);
  cluster.pending.push_back(std::move(operation));
  return *cluster.pending.back();
}

void submit_async(Warp& warp, AsyncOperation& operation) {
  if (warp.launch->options.completion != Completion::kEager || !is_ready(operation)) return;
  take_effect(operation);
  remove_finished(*warp.block->cluster);
}

bool complete_some_async(Cluster& cluster, Worker& worker) {
  AsyncOperation* chosen = nullptr;
  const Completion policy = cluster.launch->options.completion;
  uint32_t seen = 0;
  for (auto& operation : cluster.pending) {
    if (!is_ready(*operation)) continue;
    ++seen;
    // Random: each of those seen so far with the same probability.
    if (policy == Completion::kRandom && worker.random() % seen != 0) continue;
    if (chosen != nullptr && (policy == Completion::kLatest || policy == Completion::kEager)) break;
    chosen = operation.get();
  }
  if (chosen == nullptr) return false;
  if (policy == Completion::kRandom && chosen->read_source && !chosen->source_read && (worker.random() & 1)) {
    read_source(*chosen);
    return true;
  }
  take_effect(*chosen);
  remove_finished(cluster);
  return true;
}

void complete_all_async(Cluster& cluster) {
  for (size_t k = 0; k < cluster.pending.size(); ++k) {
    if (cluster.pending[k]->complete) take_effect(*cluster.pending[k]);
  }
  cluster.pending.clear();
}

void check_async_at_exit(Block& block) {
  if (!block.cluster->launch->options.checks) return;
  for (auto& operation : block.cluster->pending) {
    const AsyncOperation& o = *operation;
    const bool reads = o.reads == &block && (o.bulk_group ? !o.read_awaited : !o.done);
    const bool writes = o.writes == &block && !o.done;
    if (!reads && !writes) continue;
    const char* cure = o.bulk_group ? "cp.async.bulk.wait_group.read" : "a wait for its mbarrier";
    fault(*o.warp, *o.instruction, FaultKind::kAsyncNotAwaited,
          "the block ends while this " + o.what + (writes ? " may still write" : " may still read") +
              " its shared memory; " + cure + " is missing",
          static_cast<int>(o.lane));
  }
  for (auto& barrier : block.mbarriers) {
    if (barrier->delivered_phases <= barrier->observed_phases) continue;
    Warp& warp = *block.warps.front();
    fault(warp, warp.program->code[barrier->delivered_pc], FaultKind::kAsyncNotAwaited,
          "the block ends and no thread waited for phase " + std::to_string(barrier->delivered_phases - 1) +
              " of the mbarrier that this copy completes on: the copy may still write the block's shared memory");
  }
}

void wait_bulk_groups(Warp& warp, const Instruction&, LaneMask lanes, uint32_t keep, bool read_only) {
  Cluster& cluster = *warp.block->cluster;
  for (size_t k = 0; k < cluster.pending.size(); ++k) {
    AsyncOperation& o = *cluster.pending[k];
    if (!o.bulk_group || o.warp != &warp || !(lanes >> o.lane & 1)) continue;
    if (o.group + uint64_t{keep} >= warp.bulk_committed[o.lane]) continue;
    read_source(o);
    if (!o.read_awaited) {
      o.read_awaited = true;
      finish_source(o, warp.clocks.self, warp.clocks.now);
    }
    if (!read_only && !o.done) take_effect(o);
  }
  if (!read_only) {
    std::erase_if(cluster.unawaited_writes, [&](const UnawaitedWrite& w) {
      return w.warp == &warp && (lanes >> w.lane & 1) && w.group + uint64_t{keep} < warp.bulk_committed[w.lane];
    });
  }
  remove_finished(cluster);
}

void set_address(Decoder& d, uint32_t k, const ptx::Operand& operand, ptx::Space space) {
  const Decoder::Address a = d.address(operand, space);
  d.out.slot[k] = a.base;
  d.out.extra[k] = static_cast<uint32_t>(static_cast<int32_t>(a.offset));
  d.out.extra[5] |= ((a.wide ? kWide : 0) | (space == ptx::Space::kNone ? kGeneric : 0)) << 2 * k;
}

uint64_t address_of(const Warp& warp, const Instruction& i, uint32_t k, uint32_t lane) {
  const bool wide = i.extra[5] >> 2 * k & kWide;
  const uint64_t base = wide ? warp.u64(i.slot[k])[lane] : warp.u32(i.slot[k])[lane];
  return base + static_cast<uint64_t>(static_cast<int64_t>(static_cast<int32_t>(i.extra[k])));
}

uint32_t shared_address_of(Warp& warp, const Instruction& i, uint32_t k, uint32_t lane) {
  const uint64_t address = address_of(warp, i, k, lane);
  const bool generic = i.extra[5] >> 2 * k & kGeneric;
  if (generic && address >> kWindowShift != kSharedWindow >> kWindowShift) {
    fault_at(warp, i, FaultKind::kOutOfBounds, "the address is not in shared memory", static_cast<int>(lane), address);
  }
  return static_cast<uint32_t>(address);
}

void fault_misaligned(Warp& warp, const Instruction& i, uint64_t address, uint32_t align, uint32_t lane,
                      const char* what) {
  fault_at(warp, i, FaultKind::kMisaligned,
           std::string(what) + " is not aligned to " + std::to_string(align) + " bytes", static_cast<int>(lane),
           address);
}

SharedPlace async_place(Warp& warp, const Instruction& i, uint32_t address, uint32_t bytes, uint32_t align,
                        bool cluster, uint32_t lane) {
  if (address % align != 0) fault_misaligned(warp, i, address, align, lane, "the shared address");
  const SharedPlace place = shared_place(warp, i, address, bytes, lane);
  if (place.block != warp.block) {
    if (!cluster) {
      fault_at(warp, i, FaultKind::kOutOfBounds,
               "the address is in another block's shared memory, want the block's own", static_cast<int>(lane),
               address);
    }
  }
  return place;
}

void begin_source(Warp& warp, const Instruction& i, AsyncOperation& operation, Block& block, uint32_t offset,
                  uint32_t bytes, const char* what) {
  operation.reads = &block;
  if (!warp.checks() || bytes == 0) return;
  block.shadow.read_by_proxy(warp, i, block, offset, bytes);
  block.shadow.begin_read({offset, offset + bytes, operation.id, i.index, what});
}

void finish_source(AsyncOperation& operation, Agent agent, Time time) {
  if (operation.reads != nullptr && operation.warp->checks())
    operation.reads->shadow.finish_read(operation.id, agent, time);
}

Time& async_time(Cluster& cluster, Agent agent) {
  if (cluster.async_times.empty()) cluster.async_times.assign(kAsyncAgents, 1);
  return cluster.async_times[agent - (cluster.agents - kAsyncAgents)];
}

void deliver(Cluster& cluster, Block& block, Mbarrier& barrier, uint32_t offset, uint32_t bytes) {
  if (bytes != 0 && cluster.launch->options.checks) {
    const Time now = async_time(cluster, barrier.agent);
    block.shadow.finish_write(barrier.agent, kWholeWarp, now, offset, bytes);
    barrier.arriving.seen[barrier.agent] = now;
    barrier.arriving.fenced[barrier.agent] =
        now;  // the async proxy wrote it: no proxy fence is needed to read it there
  }
}

size_t take_cache_hint(Decoder& d) {
  if (!d.take("L2::cache_hint")) return d.operands();
  if (d.operands() == 0) d.unknown("wants a cache policy");
  d.source(d.operands() - 1, type_info("b64"));
  return d.operands() - 1;
}

}  // namespace vgpu
