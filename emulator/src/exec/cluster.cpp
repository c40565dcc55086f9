// Clusters: their barrier, addresses of other blocks' shared memory, and dependent launches.
#include <bit>

#include "core/access.h"
#include "core/block.h"
#include "core/decode.h"
#include "core/hooks.h"

namespace vgpu {
namespace {

// barrier.cluster: extra[0]: .aligned; extra[1]: the semantics are relaxed.

LaneMask arrived_now(const Warp& warp) { return warp.cluster_arrived[warp.block->cluster->cluster_phase & 1]; }

void complete_phase(Cluster& cluster) {
  const uint64_t parity = cluster.cluster_phase & 1;
  ++cluster.cluster_phase;
  cluster.cluster_arrived = 0;
  const bool checks = cluster.launch->options.checks;
  if (checks) {
    cluster.cluster_completed.join(cluster.cluster_knowledge);
    cluster.cluster_knowledge.clear();
  }
  for (auto& block : cluster.blocks) {
    for (auto& warp : block->warps) {
      for (Group& g : warp->groups) {
        if (g.wait != Wait::kClusterBarrier) continue;
        if (checks && !warp->program->code[g.pc].extra[1]) {
          warp->clocks.acquire(cluster.cluster_completed, g.lanes, warp->alive);
        }
        warp->cluster_arrived[parity] &= ~g.lanes;
        g.wait = Wait::kNone;
        ++g.pc;
      }
    }
  }
  progress(*cluster.blocks.front()->warps.front());
}

void execute_arrive(Warp& warp, const Instruction& i) {
  if (i.extra[0] && !converged(warp, i)) return;
  Cluster& cluster = *warp.block->cluster;
  if (const LaneMask twice = warp.active & (warp.cluster_arrived[0] | warp.cluster_arrived[1])) {
    fault(warp, i, FaultKind::kBarrierMisuse,
          "the thread arrives at the cluster barrier again and has not waited for it", std::countr_zero(twice));
  }
  warp.cluster_arrived[cluster.cluster_phase & 1] |= warp.active;
  cluster.cluster_arrived += static_cast<uint32_t>(std::popcount(warp.active));
  if (warp.checks()) {
    if (!i.extra[1]) {
      warp.clocks.release_into(cluster.cluster_knowledge, warp.active, warp.alive);
    } else if (warp.has_wide_fence) {
      cluster.cluster_knowledge.join(warp.fence);
    }
  }
  if (Counters* c = counters(warp, i)) ++c->barriers;
  advance(warp);
  recheck_cluster_barrier(cluster);
}

void execute_wait(Warp& warp, const Instruction& i) {
  if (i.extra[0] && !converged(warp, i)) return;
  Cluster& cluster = *warp.block->cluster;
  const LaneMask arrived = warp.cluster_arrived[0] | warp.cluster_arrived[1];
  if (const LaneMask missing = warp.active & ~arrived) {
    fault(warp, i, FaultKind::kBarrierMisuse, "the thread waits at the cluster barrier and has not arrived",
          std::countr_zero(missing));
  }
  if (const LaneMask later = warp.active & arrived_now(warp)) {
    // Some lanes may have arrived in the phase before, which is complete: those need not wait for the others.
    if (later != warp.active) {
      warp.groups.push_back({.pc = i.index, .lanes = warp.active & ~later});
      warp.group().lanes = later;
    }
    warp.group().wait = Wait::kClusterBarrier;
    return;
  }
  for (LaneMask& lanes : warp.cluster_arrived) lanes &= ~warp.active;
  if (warp.checks() && !i.extra[1]) warp.clocks.acquire(cluster.cluster_completed, warp.active, warp.alive);
  advance(warp);
}

// An address in another block's shared memory. extra[0]: 64 bits, generic.
void execute_mapa(Warp& warp, const Instruction& i) {
  const size_t blocks = warp.block->cluster->blocks.size();
  for_lanes(warp.active, [&](uint32_t lane) {
    const uint32_t rank = warp.u32(i.slot[2])[lane];
    if (rank >= blocks) {
      fault(warp, i, FaultKind::kBadArgument,
            "there is no block " + std::to_string(rank) + " in a cluster of " + std::to_string(blocks),
            static_cast<int>(lane));
    }
    const uint64_t address = i.extra[1] ? warp.u64(i.slot[1])[lane] : warp.u32(i.slot[1])[lane];
    if (i.extra[0] && address >> kWindowShift != kSharedWindow >> kWindowShift) {
      fault_at(warp, i, FaultKind::kOutOfBounds, "the address is not in shared memory", static_cast<int>(lane),
               address);
    }
    const uint64_t offset = address & ((1u << kRankShift) - 1);
    const uint64_t mapped = uint64_t{rank + 1} << kRankShift | offset;
    if (i.extra[1]) {
      warp.u64(i.slot[0])[lane] = i.extra[0] ? kSharedWindow | mapped : mapped;
    } else {
      warp.u32(i.slot[0])[lane] = static_cast<uint32_t>(mapped);
    }
  });
}

void execute_getctarank(Warp& warp, const Instruction& i) {
  for_lanes(warp.active, [&](uint32_t lane) {
    const uint64_t address = i.extra[1] ? warp.u64(i.slot[1])[lane] : warp.u32(i.slot[1])[lane];
    if (i.extra[0] && address >> kWindowShift != kSharedWindow >> kWindowShift) {
      fault_at(warp, i, FaultKind::kOutOfBounds, "the address is not in shared memory", static_cast<int>(lane),
               address);
    }
    const uint32_t rank = static_cast<uint32_t>(address) >> kRankShift;
    warp.u32(i.slot[0])[lane] = rank == 0 ? warp.block->rank : rank - 1;
  });
}

void execute_dependency_wait(Warp& warp, const Instruction&) { warp.block->cluster->dependency_resolved = true; }
void execute_launch_dependents(Warp& warp, const Instruction&) { warp.launch->let_dependents_in = true; }

void decode_mapa(Decoder& d) {
  const bool shared = d.take("shared::cluster");
  const TypeInfo type = d.take_type();
  if (type.name != "u32" && type.name != "u64") d.unknown("wants .u32 or .u64");
  if (!shared && type.bits == 32) d.unknown("a generic address has 64 bits");
  d.out.extra[0] = !shared;
  d.out.extra[1] = type.bits == 64;
  d.out.slot[0] = d.destination(0, type);
  d.out.slot[1] = d.source(1, type);
  d.out.slot[2] = d.source(2, type_info("u32"));
  d.out.execute = execute_mapa;
}

void decode_getctarank(Decoder& d) {
  const bool shared = d.take("shared::cluster");
  const TypeInfo type = d.take_type();
  if (type.name != "u32" && type.name != "u64") d.unknown("wants .u32 or .u64");
  d.out.extra[0] = !shared;
  d.out.extra[1] = type.bits == 64;
  d.out.slot[0] = d.destination(0, type_info("u32"));
  d.out.slot[1] = d.source(1, type);
  d.out.execute = execute_getctarank;
}

void decode_griddepcontrol(Decoder& d) {
  d.out.kind = InstructionClass::kControl;
  const std::string what = d.take_any({"launch_dependents", "wait"});
  if (what.empty()) d.unknown("wants .launch_dependents or .wait");
  d.out.execute = what == "wait" ? execute_dependency_wait : execute_launch_dependents;
}

const RegisterDecoders kRegistered({{"mapa", decode_mapa},
                                    {"getctarank", decode_getctarank},
                                    {"griddepcontrol", decode_griddepcontrol}});

}  // namespace

void decode_cluster_barrier(Decoder& d) {
  d.out.kind = InstructionClass::kCollective;
  d.take("cluster");
  const std::string what = d.take_any({"arrive", "wait"});
  if (what.empty()) d.unknown("wants .arrive or .wait");
  const std::string semantics = what == "arrive" ? d.take_any({"release", "relaxed"}) : d.take_any({"acquire"});
  d.out.extra[0] = d.take("aligned");
  d.out.extra[1] = semantics == "relaxed";
  d.out.control = true;
  d.out.execute = what == "arrive" ? execute_arrive : execute_wait;
}

void recheck_cluster_barrier(Cluster& cluster) {
  if (cluster.cluster_arrived == 0) return;
  uint32_t threads = 0, exited = 0;
  for (auto& block : cluster.blocks) {
    threads += block->threads;
    exited += block->exited;
  }
  if (cluster.cluster_arrived + exited < threads) return;
  // A thread may have arrived and exited, and counts once.
  for (auto& block : cluster.blocks) {
    for (auto& warp : block->warps) {
      if (warp->alive & ~arrived_now(*warp)) return;
    }
  }
  complete_phase(cluster);
}

}  // namespace vgpu
