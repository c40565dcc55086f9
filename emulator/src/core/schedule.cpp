#include "core/schedule.h"

#include <algorithm>
#include <bit>
#include <cstdio>
#include <cstring>
#include <numeric>

#include "core/hooks.h"

namespace vgpu {
namespace {

constexpr uint64_t kSpinning = 20'000;       // instructions without progress after which another cluster is let in
constexpr uint32_t kPollRounds = 200;        // of warps that wait for an mbarrier with nothing in flight
constexpr uint32_t kQuantum = 64;            // instructions, at most, of a warp's turn with checks on
constexpr uint32_t kUncheckedQuantum = 4096;
constexpr uint32_t kPollQuantum = 256;

struct Resident {
  std::unique_ptr<Cluster> cluster;
  bool running = false;
  uint32_t idle_rounds = 0;
  std::vector<std::vector<std::byte>> register_files;
};

std::array<uint32_t, 3> unflatten(uint64_t k, const std::array<uint32_t, 3>& dim) {
  return {static_cast<uint32_t>(k % dim[0]), static_cast<uint32_t>(k / dim[0] % dim[1]),
          static_cast<uint32_t>(k / dim[0] / dim[1])};
}

// 64-bit values of the special registers that are the same for a block, or change by lane.
uint64_t special_value(const Worker& worker, const Warp& warp, const std::string& name, uint32_t lane) {
  const Launch& launch = *worker.launch;
  const LaunchConfig& c = launch.config;
  const Block& block = *warp.block;
  auto axis = [&](const std::array<uint32_t, 3>& v) -> uint64_t {
    switch (name.back()) {
      case 'x': return v[0];
      case 'y': return v[1];
      case 'z': return v[2];
      default: return 0;
    }
  };
  const std::array<uint32_t, 3> clusters{c.grid[0] / c.cluster[0], c.grid[1] / c.cluster[1], c.grid[2] / c.cluster[2]};
  std::string_view base = name;
  if (base.size() > 2 && base[base.size() - 2] == '.') base.remove_suffix(2);
  if (base == "%tid") return axis(unflatten(warp.index * kLanes + lane, c.block));
  if (base == "%ntid") return axis(c.block);
  if (base == "%ctaid") return axis(block.id);
  if (base == "%nctaid") return axis(c.grid);
  if (base == "%clusterid") return axis({block.id[0] / c.cluster[0], block.id[1] / c.cluster[1], block.id[2] / c.cluster[2]});
  if (base == "%nclusterid") return axis(clusters);
  if (base == "%cluster_ctaid") return axis({block.id[0] % c.cluster[0], block.id[1] % c.cluster[1], block.id[2] % c.cluster[2]});
  if (base == "%cluster_nctaid") return axis(c.cluster);
  if (base == "%cluster_ctarank") return block.rank;
  if (base == "%cluster_nctarank") return launch.blocks_per_cluster;
  if (base == "%is_explicit_cluster") return launch.blocks_per_cluster > 1 ? ~0ull : 0;
  if (base == "%laneid") return lane;
  if (base == "%warpid") return warp.index;
  if (base == "%nwarpid") return launch.chip.max_threads_per_multiprocessor / kLanes;
  if (base == "%smid") return block.cluster->number % std::max(launch.chip.multiprocessors, 1u);
  if (base == "%nsmid") return launch.chip.multiprocessors;
  if (base == "%gridid") return launch.number;
  if (base == "%lanemask_eq") return 1u << lane;
  if (base == "%lanemask_lt") return (1u << lane) - 1;
  if (base == "%lanemask_le") return (2u << lane) - 1;
  if (base == "%lanemask_gt") return ~((2u << lane) - 1);
  if (base == "%lanemask_ge") return ~((1u << lane) - 1);
  if (base == "%dynamic_smem_size") return c.dynamic_shared_bytes;
  if (base == "%total_smem_size") return launch.shared_bytes;
  if (base == "%aggr_smem_size") return launch.shared_bytes;
  if (base == "%reserved_smem_offset_begin" || base == "%reserved_smem_offset_0") return 0;
  if (base == "%reserved_smem_offset_1") return kSharedBase / 2;
  if (base == "%reserved_smem_offset_end" || base == "%reserved_smem_offset_cap") return kSharedBase;
  // Where grid-wide barriers of cooperative groups keep their state.
  if (base == "%envreg1") return launch.cooperative_workspace >> 32;
  if (base == "%envreg2") return launch.cooperative_workspace & 0xFFFFFFFF;
  Fault f;
  f.kind = FaultKind::kUnknownInstruction;
  f.message = "the emulator does not know the special register " + name;
  f.kernel = launch.kernel->demangled;
  f.format();
  throw f;
}

bool differs_by_cluster(const std::string& name) {
  return name.starts_with("%ctaid") || name.starts_with("%clusterid") || name == "%smid";
}

// `all`: also those that stay the same from cluster to cluster.
void fill_specials(const Worker& worker, Warp& warp, bool all) {
  for (const SpecialSlot& s : warp.program->specials) {
    if (!all && !differs_by_cluster(s.name)) continue;
    if (!s.wide && !s.name.starts_with("%tid") && !s.name.starts_with("%lane")) {
      std::fill_n(warp.u32(s.slot), kLanes, static_cast<uint32_t>(special_value(worker, warp, s.name, 0)));
      continue;
    }
    for (uint32_t l = 0; l < kLanes; ++l) {
      uint64_t value = special_value(worker, warp, s.name, l);
      if (s.wide) {
        warp.u64(s.slot)[l] = value;
      } else {
        warp.u32(s.slot)[l] = static_cast<uint32_t>(value);
      }
    }
  }
}

std::unique_ptr<Cluster> make_cluster(Worker& worker, std::vector<std::vector<std::byte>>& register_files) {
  Launch& launch = *worker.launch;
  auto cluster = std::make_unique<Cluster>();
  cluster->launch = &launch;
  uint32_t threads = launch.config.block[0] * launch.config.block[1] * launch.config.block[2];
  cluster->agents = launch.blocks_per_cluster * launch.warps_per_block + kAsyncAgents;
  for (uint32_t rank = 0; rank < launch.blocks_per_cluster; ++rank) {
    auto block = std::make_unique<Block>();
    block->cluster = cluster.get();
    block->rank = rank;
    block->threads = threads;
    block->shared.assign(launch.shared_bytes, kPoison);
    for (uint32_t w = 0; w < launch.warps_per_block; ++w) {
      auto warp = std::make_unique<Warp>();
      // 64 spare bytes so that slots can be aligned for vector code.
      auto& file = register_files.emplace_back(launch.program->register_bytes + 64);
      auto at = reinterpret_cast<uintptr_t>(file.data());
      warp->registers = file.data() + (64 - at % 64) % 64;
      std::memcpy(warp->registers, launch.program->constants.data(), launch.program->constants.size());
      warp->index = w;
      warp->block = block.get();
      warp->program = launch.program;
      warp->launch = &launch;
      warp->worker = &worker;
      uint32_t n = std::min(threads - w * kLanes, kLanes);
      warp->born = n == kLanes ? kAllLanes : (1u << n) - 1;
      fill_specials(worker, *warp, true);
      block->warps.push_back(std::move(warp));
    }
    cluster->blocks.push_back(std::move(block));
  }
  return cluster;
}

void start_cluster(Worker& worker, Cluster& cluster, uint64_t number) {
  Launch& launch = *worker.launch;
  const LaunchConfig& c = launch.config;
  const bool checks = launch.options.checks;
  cluster.number = number;
  cluster.pending.clear();
  cluster.unawaited_writes.clear();
  cluster.version = 0;
  cluster.instructions_since_progress = 0;
  cluster.cluster_arrived = 0;
  cluster.cluster_phase = 0;
  cluster.cluster_knowledge = Knowledge(cluster.agents);
  cluster.cluster_completed = Knowledge(cluster.agents);
  cluster.next_async_agent = 0;
  cluster.published.clear();
  cluster.other_clusters.clear();
  cluster.acquired_globally = false;
  cluster.dependency_resolved = !launch.overlaps_predecessor;
  cluster.async_times.assign(kAsyncAgents, 1);
  cluster.modified_maps.clear();
  const std::array<uint32_t, 3> clusters{c.grid[0] / c.cluster[0], c.grid[1] / c.cluster[1], c.grid[2] / c.cluster[2]};
  auto origin = unflatten(number, clusters);
  for (auto& block : cluster.blocks) {
    auto inner = unflatten(block->rank, c.cluster);
    for (int k = 0; k < 3; ++k) block->id[k] = origin[k] * c.cluster[k] + inner[k];
    block->exited = 0;
    block->mbarriers.clear();
    block->remote_touches.clear();
    for (Barrier& b : block->barriers) {
      b.active = false;
      b.arrived = b.expected = b.reduction = 0;
      b.knowledge = Knowledge(checks ? cluster.agents : 0);
    }
    if (checks) {
      std::fill(block->shared.begin(), block->shared.end(), kPoison);
      block->shadow.reset(launch.shared_bytes, launch.program->shared_granule, cluster.agents);
    }
    if (launch.program->uses_reserved_shared) {
      std::fill_n(block->shared.begin(), kSharedBase, std::byte{0});
      if (checks) block->shadow.mark_known(0, kSharedBase);
    }
    for (auto& w : block->warps) {
      w->alive = w->born;
      w->groups.assign(1, Group{0, w->born});
      w->current = 0;
      w->clocks.reset(block->rank * launch.warps_per_block + w->index, checks ? cluster.agents : 0);
      w->register_changes = 0;
      w->has_fence = w->has_wide_fence = false;
      w->open_copies = {};
      w->copy_groups.clear();
      if (launch.program->uses_wgmma) w->wgmma = {};
      w->bulk_open = {};
      w->bulk_committed = {};
      w->cluster_arrived = {};
      if (checks) w->written.assign(launch.program->register_count, 0);
      size_t local = size_t{launch.program->local_bytes} * kLanes;
      w->local.assign(local, kPoison);
      w->local_written.assign(local, 0);
      fill_specials(worker, *w, false);
    }
  }
}

[[noreturn]] void unwritten(Warp& warp, const Instruction& i, uint32_t reg) {
  LaneMask missing = warp.active & ~warp.written[reg];
  int lane = std::countr_zero(missing);
  const std::string& name = warp.program->register_names[reg];
  if (in_wgmma_flight(warp, reg)) {
    fault(warp, i, FaultKind::kAsyncTooEarly, "uses " + name + " while a wgmma that has not been waited for works on it", lane);
  }
  fault(warp, i, FaultKind::kUninitialisedRegister, "reads " + name + ", which nothing has written", lane);
}

// Of an instruction that reads registers without a value: the lanes whose result has one. Arithmetic passes the lack on,
// as compilers leave undefined values in code that does not use the result; anything else is a fault.
LaneMask lanes_with_value(Warp& warp, const Instruction& i) {
  const LaneMask m = warp.active;
  const bool passes_on = i.kind <= InstructionClass::kMove && !i.control;
  LaneMask known = kAllLanes;
  for (uint32_t r : i.reads) {
    LaneMask missing = m & ~warp.written[r];
    if (missing == 0) continue;
    bool in_flight = in_wgmma_flight(warp, r);
    if (!i.copies && (in_flight || (!passes_on && warp.launch->options.uninitialised))) unwritten(warp, i, r);
    known &= ~missing;
  }
  if (i.statement->opcode == "selp" && i.guard == kNoSlot) {
    // Only the value that is chosen matters. The predicate is read last; immediates are not in `reads`.
    const auto& operands = i.statement->operands;
    auto is_register = [&](size_t k) { return operands[k].kind == ptx::OperandKind::kRegister; };
    size_t next = 0;
    LaneMask a = is_register(1) ? warp.written[i.reads[next++]] : kAllLanes;
    LaneMask b = is_register(2) ? warp.written[i.reads[next++]] : kAllLanes;
    LaneMask p = warp.predicate(i.slot[3]) ^ i.extra[0];
    return ((p & a) | (~p & b)) & warp.written[i.reads.back()];
  }
  return known;
}

// True when a group was chosen; `limit`: where another group waits to be joined.
bool select_group(Warp& warp, std::mt19937_64* shuffle, uint32_t* limit) {
  auto& groups = warp.groups;
  *limit = ~0u;
  if (groups.size() == 1) {
    warp.current = 0;
    Group& g = groups[0];
    g.yielded = false;
    return g.wait == Wait::kNone && g.lanes != 0;
  }
  std::erase_if(groups, [](const Group& g) { return g.lanes == 0; });
  for (size_t a = 0; a < groups.size(); ++a) {
    if (groups[a].wait > Wait::kConverge) continue;
    for (size_t b = a + 1; b < groups.size();) {
      if (groups[b].pc == groups[a].pc && groups[b].wait <= Wait::kConverge) {
        groups[a].lanes |= groups[b].lanes;
        groups[a].wait = Wait::kNone;
        groups[a].yielded &= groups[b].yielded;
        groups.erase(groups.begin() + static_cast<ptrdiff_t>(b));
      } else {
        ++b;
      }
    }
  }
  int chosen = -1;
  auto better = [&](size_t k) {
    if (chosen < 0) return true;
    const Group &mine = groups[k], &best = groups[chosen];
    if (mine.yielded != best.yielded) return best.yielded;
    return mine.pc < best.pc;
  };
  size_t runnable = 0;
  for (size_t k = 0; k < groups.size(); ++k) {
    if (groups[k].wait != Wait::kNone) continue;
    ++runnable;
    if (better(k)) chosen = static_cast<int>(k);
  }
  if (chosen < 0) return false;
  if (shuffle != nullptr && runnable > 1) {
    // Lanes of a warp make progress independently: another path may run first.
    size_t nth = (*shuffle)() % runnable;
    for (size_t k = 0; k < groups.size(); ++k) {
      if (groups[k].wait == Wait::kNone && nth-- == 0) chosen = static_cast<int>(k);
    }
  }
  groups[chosen].yielded = false;
  warp.current = static_cast<uint32_t>(chosen);
  for (size_t k = 0; k < groups.size(); ++k) {
    if (static_cast<int>(k) != chosen && groups[k].wait <= Wait::kConverge && groups[k].pc > groups[chosen].pc) {
      *limit = std::min(*limit, groups[k].pc);
    }
  }
  return true;
}

// Runs up to `quantum` instructions; returns how many.
template <bool kChecks>
uint32_t run_warp(Worker& worker, Warp& warp, uint32_t quantum) {
  const Instruction* code = warp.program->code.data();
  const bool uses_wgmma = kChecks && warp.program->uses_wgmma;
  Counters* per_instruction = worker.counters.empty() ? nullptr : worker.counters.data();
  uint32_t executed = 0;
  uint64_t lanes = 0;
  // Now and then the order of divergent paths is shuffled at the start of a turn.
  bool shuffle = warp.groups.size() > 1 && (worker.random() & 7) == 0;
  while (executed < quantum) {
    uint32_t limit;
    if (!select_group(warp, shuffle ? &worker.random : nullptr, &limit)) break;
    shuffle = false;
    bool yielded = false;
    while (executed < quantum) {
      Group& g = warp.groups[warp.current];
      const Instruction& i = code[g.pc];
      LaneMask m = g.lanes;
      if (i.guard != kNoSlot) {
        LaneMask p = warp.predicate(i.guard);
        m &= i.guard_negated ? ~p : p;
      }
      ++executed;
      if (per_instruction != nullptr) {
        Counters& c = per_instruction[i.index];
        c.warp_instructions += 1;
        c.lane_instructions += static_cast<uint32_t>(std::popcount(m));
      }
      lanes += static_cast<uint32_t>(std::popcount(m));
      if (kChecks && i.guard != kNoSlot) {
        uint32_t guard = i.reads.front();
        if (g.lanes & ~warp.written[guard]) {
          warp.active = g.lanes;
          unwritten(warp, i, guard);
        }
      }
      if (m == 0) {
        ++g.pc;
      } else {
        warp.active = m;
        LaneMask known = kAllLanes;
        if constexpr (kChecks) {
          for (uint32_t r : i.reads) {
            if (m & ~warp.written[r]) [[unlikely]] known = lanes_with_value(warp, i);
          }
        }
        if (!i.control) {
          i.execute(warp, i);
          ++g.pc;
          if constexpr (kChecks) {
            for (uint32_t r : i.writes) warp.written[r] = (warp.written[r] & ~m) | (m & known);
            if (uses_wgmma) wgmma_note_writes(warp, i);
          }
        } else {
          if (m != g.lanes) {
            if (per_instruction != nullptr && i.kind == InstructionClass::kControl) ++per_instruction[i.index].divergent_branches;
            Group rest = g;
            rest.lanes = g.lanes & ~m;
            rest.pc = g.pc + 1;
            g.lanes = m;
            warp.groups.push_back(rest);
          }
          uint32_t current = warp.current;
          i.execute(warp, i);
          if constexpr (kChecks) {
            if (current >= warp.groups.size() || warp.groups[current].wait != Wait::kConverge) {
              for (uint32_t r : i.writes) warp.written[r] |= m;
              if (uses_wgmma) wgmma_note_writes(warp, i);
            }
          }
          if (warp.groups.size() == 1) {
            const Group& after = warp.groups[0];
            yielded = after.yielded;
            if (after.wait == Wait::kNone && after.lanes != 0 && !yielded) continue;
          } else if (warp.current < warp.groups.size()) {
            yielded = warp.groups[warp.current].yielded;
          }
          break;
        }
      }
      if (g.pc >= limit) break;
    }
    if (yielded) break;
  }
  worker.total.warp_instructions += executed;
  worker.total.lane_instructions += lanes;
  warp.block->cluster->instructions_since_progress += executed;
  return executed;
}

bool can_run(const Warp& warp) {
  for (const Group& g : warp.groups) {
    if (g.wait == Wait::kNone && g.lanes != 0) return true;
  }
  // Groups that wait at one collective at the same place go on together.
  for (size_t a = 0; a < warp.groups.size(); ++a) {
    for (size_t b = a + 1; b < warp.groups.size(); ++b) {
      if (warp.groups[a].wait == Wait::kConverge && warp.groups[b].wait == Wait::kConverge && warp.groups[a].pc == warp.groups[b].pc) {
        return true;
      }
    }
  }
  return false;
}

bool all_yielded(const Warp& warp) {
  for (const Group& g : warp.groups) {
    if (g.wait == Wait::kNone && g.lanes != 0 && !g.yielded) return false;
  }
  return true;
}

[[noreturn]] void report_deadlock(Worker& worker, Cluster& cluster, bool spinning) {
  Warp* culprit = nullptr;
  const Group* at = nullptr;
  FaultKind kind = FaultKind::kDeadlock;
  std::string details;
  uint32_t lines = 0;
  for (auto& block : cluster.blocks) {
    for (auto& w : block->warps) {
      for (const Group& g : w->groups) {
        if (g.lanes == 0) continue;
        const char* what = g.wait == Wait::kConverge         ? "waits for other lanes at "
                           : g.wait == Wait::kBarrier        ? "waits at a barrier, "
                           : g.wait == Wait::kClusterBarrier ? "waits at the cluster barrier, "
                                                             : "polls at ";
        if (++lines <= 64) {
          char mask[16];
          std::snprintf(mask, sizeof mask, "%08x", g.lanes);
          details += "  block " + std::to_string(block->rank) + " warp " + std::to_string(w->index) + " lanes " + mask + " " + what +
                     place(*w, g.pc) + "\n";
        }
        bool collective = g.wait == Wait::kConverge;
        if (culprit == nullptr || (collective && kind == FaultKind::kDeadlock)) {
          culprit = w.get();
          at = &g;
          if (collective) {
            const ptx::Statement& s = *w->program->code[g.pc].statement;
            bool of_block = (s.opcode == "bar" || s.opcode == "barrier") && !s.modifiers.empty() && s.modifiers[0] != "warp";
            kind = of_block ? FaultKind::kBarrierMisuse : FaultKind::kDivergentCollective;
          }
        }
      }
      for (uint32_t b = 0; b < 16 && w->index == 0; ++b) {
        const Barrier& barrier = block->barriers[b];
        if (barrier.active) {
          details += "  barrier " + std::to_string(b) + ": " + std::to_string(barrier.arrived) + " of " +
                     std::to_string(barrier.expected == 0 ? block->threads - block->exited : barrier.expected) + " threads arrived\n";
        }
      }
    }
    for (const auto& m : block->mbarriers) {
      if (!m->live) continue;
      details += "  mbarrier at offset " + std::to_string(m->offset) + ": phase " + std::to_string(m->phase) + ", " +
                 std::to_string(m->pending) + " of " + std::to_string(m->count) + " arrivals and " + std::to_string(m->transactions) +
                 " bytes missing\n";
    }
  }
  if (culprit == nullptr) {
    culprit = cluster.blocks[0]->warps[0].get();
    static const Group kStart;
    at = &kStart;
  }
  culprit->active = at->lanes;
  std::string message = kind != FaultKind::kDeadlock
                            ? "lanes of the warp are elsewhere and will not come"
                            : spinning ? "no progress: threads poll for what will not happen" : "no thread can go on";
  int lane = at->lanes ? std::countr_zero(at->lanes) : -1;
  (void)worker;
  fault(*culprit, culprit->program->code[at->pc], kind, message, lane, details);
}

void renew_clocks(Cluster& cluster) {
  bool old = false;
  for (auto& block : cluster.blocks) {
    for (auto& w : block->warps) old |= w->clocks.now > kMaxTime - 4096;
  }
  for (Time t : cluster.async_times) old |= t > kMaxTime - 4096;
  if (!old || !cluster.pending.empty()) return;
  // Times are about to run out: start anew, with everything so far taken as ordered.
  for (auto& block : cluster.blocks) {
    block->shadow.forget_order();
    for (auto& w : block->warps) {
      w->clocks.reset(w->clocks.self, cluster.agents);
      w->fence = Knowledge(cluster.agents);
    }
    for (Barrier& b : block->barriers) b.knowledge.clear();
    for (auto& m : block->mbarriers) {
      m->arriving.clear();
      m->completed.clear();
      m->init_time = 0;
    }
  }
  cluster.cluster_knowledge.clear();
  cluster.cluster_completed.clear();
  for (auto& [key, k] : cluster.published) k.clear();
  std::fill(cluster.async_times.begin(), cluster.async_times.end(), 1);
}

enum class Round : uint8_t { kRan, kStuck, kDone };

// One turn for each warp of the cluster, in random order.
Round run_round(Worker& worker, Resident& resident) {
  Cluster& cluster = *resident.cluster;
  const Options& options = worker.launch->options;
  const bool checks = options.checks;
  std::array<std::pair<uint32_t, uint32_t>, 64> few;
  std::vector<std::pair<uint32_t, uint32_t>> many;
  size_t n = 0;
  const size_t total = cluster.blocks.size() * worker.launch->warps_per_block;
  std::pair<uint32_t, uint32_t>* order = few.data();
  if (total > few.size()) {
    many.resize(total);
    order = many.data();
  }
  for (uint32_t b = 0; b < cluster.blocks.size(); ++b) {
    for (uint32_t w = 0; w < worker.launch->warps_per_block; ++w) {
      if (cluster.blocks[b]->warps[w]->alive != 0) order[n++] = {b, w};
    }
  }
  if (n == 0) return Round::kDone;
  if (checks) {
    for (size_t k = n; k > 1; --k) std::swap(order[k - 1], order[worker.random() % k]);
  }
  uint64_t version = cluster.version;
  bool ran = false, polled = false;
  for (size_t k = 0; k < n; ++k) {
    Warp& warp = *cluster.blocks[order[k].first]->warps[order[k].second];
    if (!can_run(warp)) continue;
    bool polls = all_yielded(warp);
    uint32_t quantum = checks ? 1 + static_cast<uint32_t>(worker.random() % kQuantum) : kUncheckedQuantum;
    // A warp that polls comes to its next poll within its turn, or it would seem to get on.
    if (polls) quantum = std::max(quantum, kPollQuantum);
    uint32_t executed = checks ? run_warp<true>(worker, warp, quantum) : run_warp<false>(worker, warp, quantum);
    if (executed == 0) continue;
    (polls ? polled : ran) = true;
    if (checks && options.completion == Completion::kRandom) {
      uint64_t r = worker.random();
      if ((r & 7) == 0 && !cluster.pending.empty()) complete_some_async(cluster, worker);
      if ((r & 0x700) == 0) complete_some_copy(warp);
    }
  }
  if (checks) renew_clocks(cluster);
  if (cluster.version != version) ran = true;
  if (ran) {
    resident.idle_rounds = 0;
    return Round::kRan;
  }
  if (complete_some_async(cluster, worker)) {
    resident.idle_rounds = 0;
    return Round::kRan;
  }
  if (polled && ++resident.idle_rounds < kPollRounds) return Round::kRan;
  return Round::kStuck;
}

void finish_cluster(Cluster& cluster) {
  for (auto& block : cluster.blocks) check_async_at_exit(*block);
  complete_all_async(cluster);
}

uint64_t permuted(uint64_t k, uint64_t n, uint64_t seed) {
  // Seed 0 keeps the order of hardware; others start anywhere and go in steps that meet every block.
  if (seed == 0 || n < 2) return k;
  uint64_t step = seed * 2654435761u % n;
  while (std::gcd(step == 0 ? n : step, n) != 1) step = (step + 1) % n;
  return (seed * 40503u + k % n * step) % n;
}

}  // namespace

void run_clusters(Worker& worker, std::atomic<uint64_t>& next) {
  Launch& launch = *worker.launch;
  struct Done {
    Worker& worker;
    ~Done() { worker.spinning = true; }
  } done{worker};
  std::vector<std::unique_ptr<Resident>> residents;
  const uint64_t limit = launch.config.cooperative ? ~0ull : std::max<uint64_t>(2, launch.chip.multiprocessors * 2ull);
  auto start_one = [&]() -> bool {
    uint64_t k = next.fetch_add(1);
    if (k >= launch.clusters) return false;
    Resident* free = nullptr;
    for (auto& r : residents) {
      if (!r->running) free = r.get();
    }
    if (free == nullptr) {
      residents.push_back(std::make_unique<Resident>());
      free = residents.back().get();
      free->cluster = make_cluster(worker, free->register_files);
    }
    start_cluster(worker, *free->cluster, permuted(k, launch.clusters, launch.options.checks ? launch.options.seed : 0));
    free->running = true;
    free->idle_rounds = 0;
    return true;
  };
  size_t running = 0;
  if (launch.config.cooperative) {
    while (start_one()) ++running;
  }
  uint64_t seen_progress = 0, instructions_then = 0;
  while (!launch.stop.load(std::memory_order_relaxed)) {
    if (running == 0) {
      if (!start_one()) return;
      ++running;
    }
    bool all_stuck = true, spinning = false;
    for (size_t k = 0; k < residents.size(); ++k) {
      Resident& r = *residents[k];
      if (!r.running) continue;
      Round round = run_round(worker, r);
      if (round == Round::kDone) {
        finish_cluster(*r.cluster);
        r.running = false;
        --running;
        all_stuck = false;
        continue;
      }
      if (round == Round::kRan) all_stuck = false;
      if (r.cluster->instructions_since_progress > kSpinning) spinning = true;
    }
    if (running == 0) continue;
    if ((all_stuck || spinning) && running < limit && next.load() < launch.clusters) {
      // Twice as many each time: a chain of blocks may reach far.
      size_t started = 0;
      for (size_t want = running; started < want && running < limit && start_one(); ++started) ++running;
      if (started != 0) continue;
    }
    if (all_stuck) {
      for (auto& r : residents) {
        if (r->running) report_deadlock(worker, *r->cluster, r->idle_rounds > 0);
      }
    }
    worker.spinning.store(spinning, std::memory_order_relaxed);
    // A launch hangs when every worker spins; while one works, others may be waiting for it.
    if (spinning && std::all_of(launch.workers.begin(), launch.workers.end(),
                                [](const Worker* w) { return w->spinning.load(std::memory_order_relaxed); })) {
      uint64_t progress_now = launch.global_progress.load(std::memory_order_relaxed);
      if (progress_now != seen_progress) {
        seen_progress = progress_now;
        instructions_then = worker.total.warp_instructions;
      } else if (worker.total.warp_instructions - instructions_then > launch.options.hang_limit) {
        for (auto& r : residents) {
          if (r->running && r->cluster->instructions_since_progress > kSpinning) report_deadlock(worker, *r->cluster, true);
        }
      }
    }
  }
}

}  // namespace vgpu
