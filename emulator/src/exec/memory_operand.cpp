#include "exec/memory_operand.h"

#include <algorithm>
#include <bit>

#include "check/global_shadow.h"

namespace vgpu {

ptx::Space take_space(Decoder& d, uint32_t* flags) {
  if (d.take("global")) return ptx::Space::kGlobal;
  if (d.take("shared::cluster")) return ptx::Space::kShared;
  if (d.take("shared") || d.take("shared::cta")) {
    *flags |= kOwnBlock;
    return ptx::Space::kShared;
  }
  if (d.take("local")) return ptx::Space::kLocal;
  if (d.take("const")) return ptx::Space::kConst;
  if (!d.take_any({"param", "param::entry", "param::func"}).empty()) return ptx::Space::kParam;
  return ptx::Space::kNone;
}

void take_semantics(Decoder& d, uint32_t* flags) {
  const std::string semantics = d.take_any({"weak", "volatile", "relaxed", "acquire", "release", "acq_rel"});
  if (!semantics.empty() && semantics != "weak") *flags |= kStrong;
  if (semantics == "acquire" || semantics == "acq_rel") *flags |= kAcquires;
  if (semantics == "release" || semantics == "acq_rel") *flags |= kReleases;
  const std::string scope = d.take_any({"cta", "cluster", "gpu", "sys"});
  const bool scoped = !scope.empty();
  if (scope == "cta") *flags |= kNarrow;
  if (scoped && semantics == "weak") d.unknown(".weak has no scope");
}

bool take_cache_hints(Decoder& d) {
  d.take_any({"ca", "cg", "cs", "lu", "cv", "wb", "wt"});
  d.take_any({"L1::evict_normal", "L1::evict_unchanged", "L1::evict_first", "L1::evict_last", "L1::no_allocate"});
  d.take_any({"L2::evict_normal", "L2::evict_first", "L2::evict_last"});
  d.take_any({"L2::64B", "L2::128B", "L2::256B"});
  return d.take("L2::cache_hint");
}

void decode_address(Decoder& d, const ptx::Operand& operand, ptx::Space space, uint32_t bytes, uint32_t flags) {
  const Decoder::Address a = d.address(operand, space);
  d.out.slot[0] = a.base;
  d.out.immediate = a.offset;
  d.out.extra[0] = static_cast<uint32_t>(space);
  d.out.extra[1] = bytes;
  d.out.extra[2] = a.wide ? flags | kWideBase : flags;
  d.note_access(space, bytes);
}

std::span<const ptx::Operand> elements_of(const ptx::Operand& operand) {
  if (operand.kind == ptx::OperandKind::kVector) return operand.elements;
  return {&operand, 1};
}

uint32_t take_vector(Decoder& d) {
  const std::string vector = d.take_any({"v2", "v4", "v8"});
  return vector.empty() ? 1 : static_cast<uint32_t>(vector[1] - '0');
}

void refuse_other_block(Warp& warp, const Instruction& i, const Access& access) {
  const uint32_t own = warp.block->rank + 1;
  for_lanes(access.lanes, [&](uint32_t l) {
    const uint32_t rank = static_cast<uint32_t>(access.address[l]) >> kRankShift;
    if (rank == 0 || rank == own) return;
    fault_at(warp, i, FaultKind::kOutOfBounds,
             "the address is in the shared memory of block " + std::to_string(rank - 1) +
                 " of the cluster: only .shared::cluster reaches it",
             static_cast<int>(l), access.address[l]);
  });
}

bool resolve_own_shared(Warp& warp, Access& access) {
  Block& block = *warp.block;
  const uint64_t first = access.address[__builtin_ctz(access.lanes)];
  uint64_t low = first, high = first, bits = 0;
  for (uint32_t l = 0; l < kLanes; ++l) {
    const uint64_t address = access.lanes >> l & 1 ? access.address[l] : first;
    low = std::min(low, address);
    high = std::max(high, address);
    bits |= address;
    access.host[l] = block.shared.data() + address;
  }
  if (low < kSharedBase || high + access.bytes > block.shared.size() || bits & (access.bytes - 1)) return false;
  if (access.touch != Touch::kRead && access.touch != Touch::kStrongRead)
    block.cluster->instructions_since_progress = 0;
  return true;
}

void part_ways(Warp& warp) {
  if (!warp.checks() || std::popcount(warp.active) < 2) return;
  const uint64_t random = worker(warp).random();
  if (random & 1) return;
  const LaneMask first = warp.active & static_cast<LaneMask>(random >> 32), later = warp.active & ~first;
  if (first == 0 || later == 0) return;
  Group rest = warp.group();
  rest.lanes = later;
  rest.yielded = true;
  warp.group().lanes = warp.active = first;
  warp.groups.push_back(rest);
}

void acquire_again(Warp& warp, const Access& access) {
  if (!warp.checks() || !warp.launch->published.load(std::memory_order_acquire)) return;
  if (access.space != ptx::Space::kGlobal && access.space != ptx::Space::kNone) return;
  uint64_t last = 0;
  for_lanes(access.lanes, [&](uint32_t l) {
    if (access.address[l] == last || access.address[l] >> kWindowShift != 0) return;
    last = access.address[l];
    acquire_globally(warp, last, access.acquire);
  });
}

void refuse_collision(Warp& warp, const Instruction& i, const Access& access, uint32_t lane) {
  std::string details;
  for_lanes(access.lanes & ~(1u << lane), [&](uint32_t l) {
    const auto distance = access.host[l] - access.host[lane];
    if (distance > -static_cast<int64_t>(access.bytes) && distance < static_cast<int64_t>(access.bytes)) {
      details = "the other: lane " + std::to_string(l);
    }
  });
  fault_at(warp, i, access.space == ptx::Space::kGlobal ? FaultKind::kGlobalRace : FaultKind::kSharedRace,
           "two lanes write different values to the same address", static_cast<int>(lane), access.address[lane],
           details);
}

}  // namespace vgpu
