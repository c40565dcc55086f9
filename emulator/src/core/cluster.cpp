#include "core/cluster.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <string_view>

namespace vgpu {
namespace {

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
      case 'x':
        return v[0];
      case 'y':
        return v[1];
      case 'z':
        return v[2];
      default:
        return 0;
    }
  };
  const std::array<uint32_t, 3> clusters{c.grid[0] / c.cluster[0], c.grid[1] / c.cluster[1], c.grid[2] / c.cluster[2]};
  std::string_view base = name;
  if (base.size() > 2 && base[base.size() - 2] == '.') base.remove_suffix(2);
  if (base == "%tid") return axis(unflatten(warp.index * kLanes + lane, c.block));
  if (base == "%ntid") return axis(c.block);
  if (base == "%ctaid") return axis(block.id);
  if (base == "%nctaid") return axis(c.grid);
  if (base == "%clusterid")
    return axis({block.id[0] / c.cluster[0], block.id[1] / c.cluster[1], block.id[2] / c.cluster[2]});
  if (base == "%nclusterid") return axis(clusters);
  if (base == "%cluster_ctaid")
    return axis({block.id[0] % c.cluster[0], block.id[1] % c.cluster[1], block.id[2] % c.cluster[2]});
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

}  // namespace

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
  cluster.unfenced_clusters.clear();
  cluster.acquired_globally = false;
  cluster.sleeps = false;
  cluster.renewed = false;
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
      b.arrivals.clear();
      b.previous_arrivals.clear();
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

}  // namespace vgpu
