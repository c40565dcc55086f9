// fence and membar: order memory accesses, and make writes visible to other proxies.
#include "core/block.h"
#include "core/decode.h"

namespace vgpu {

void decode_tensormap_acquire(Decoder& d);  // tensormap.cpp

namespace {

// What relaxed atomics after it publish. extra[0]: the scope is wider than the block.
void execute_fence(Warp& warp, const Instruction& i) {
  if (!warp.checks()) return;
  if (i.extra[0]) {
    warp.clocks.fence_wide();
    acquire_at_fence(*warp.block->cluster);
  }
  warp.fence = warp.clocks.release(warp.active, warp.alive);
  warp.has_fence = true;
  warp.has_wide_fence |= i.extra[0] != 0;
}

void execute_acquire_fence(Warp& warp, const Instruction&) {
  if (warp.checks()) acquire_at_fence(*warp.block->cluster);
}

void execute_proxy_fence(Warp& warp, const Instruction&) {
  if (warp.checks()) warp.clocks.fence_proxy();
}

void execute_proxy_and_memory_fence(Warp& warp, const Instruction& i) {
  execute_proxy_fence(warp, i);
  execute_fence(warp, i);
}

// The warp's initialisations of mbarriers come before whatever follows a cluster barrier, even a relaxed one.
void execute_mbarrier_fence(Warp& warp, const Instruction&) {
  const Cluster& cluster = *warp.block->cluster;
  for (auto& barrier : warp.block->mbarriers) {
    if (barrier->init_agent != warp.clocks.self || barrier->init_fenced) continue;
    barrier->init_fenced = true;
    barrier->init_cluster_phase = cluster.cluster_phase;
  }
}

bool take_wide_scope(Decoder& d) {
  const std::string scope = d.take_any({"cta", "cluster", "gpu", "sys"});
  if (scope.empty()) d.unknown("wants a scope");
  return scope != "cta";
}

void decode_proxy(Decoder& d) {
  if (d.take("alias")) {
    d.out.execute = execute_fence;
  } else if (d.take("async")) {
    d.take_any({"global", "shared::cta", "shared::cluster"});
    d.out.execute = execute_proxy_fence;
  } else if (d.take("async::generic")) {
    const std::string order = d.take_any({"acquire", "release"});
    if (order.empty() ||
        !d.take(order == "acquire" ? "sync_restrict::shared::cluster" : "sync_restrict::shared::cta") ||
        !d.take("cluster")) {
      d.unknown("wants .acquire.sync_restrict::shared::cluster.cluster or .release.sync_restrict::shared::cta.cluster");
    }
    d.out.extra[0] = 1;
    d.out.execute = execute_proxy_and_memory_fence;
  } else if (d.take("tensormap::generic")) {
    const std::string order = d.take_any({"acquire", "release"});
    d.out.extra[0] = take_wide_scope(d);
    if (order == "acquire") return decode_tensormap_acquire(d);
    if (order != "release") d.unknown("wants .acquire or .release");
    d.out.execute = execute_fence;
  } else {
    d.unknown("the emulator does not know this proxy");
  }
}

void decode_fence(Decoder& d) {
  d.out.kind = InstructionClass::kMemory;
  if (d.take("proxy")) return decode_proxy(d);
  if (d.take("mbarrier_init")) {
    if (!d.take("release") || !d.take("cluster")) d.unknown("wants .release.cluster");
    d.out.execute = execute_mbarrier_fence;
    return;
  }
  const std::string semantics = d.take_any({"sc", "acq_rel", "acquire", "release"});
  if (semantics == "acquire") d.take("sync_restrict::shared::cluster");
  if (semantics == "release") d.take("sync_restrict::shared::cta");
  d.out.extra[0] = take_wide_scope(d);
  d.out.execute = semantics == "acquire" ? execute_acquire_fence : execute_fence;
}

void decode_membar(Decoder& d) {
  d.out.kind = InstructionClass::kMemory;
  if (d.take("proxy")) return decode_proxy(d);
  const std::string level = d.take_any({"cta", "gl", "sys"});
  if (level.empty()) d.unknown("wants .cta, .gl or .sys");
  d.out.extra[0] = level != "cta";
  d.out.execute = execute_fence;
}

const RegisterDecoders kRegistered({{"fence", decode_fence}, {"membar", decode_membar}});

}  // namespace
}  // namespace vgpu
