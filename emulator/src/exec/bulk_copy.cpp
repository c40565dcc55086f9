// cp.async.bulk and cp.reduce.async.bulk: contiguous copies between global and shared memory, and bulk groups.
#include <bit>
#include <cstring>

#include "exec/async.h"
#include "exec/async_reduce.h"
#include "exec/bulk.h"
#include "exec/mbarrier.h"

namespace vgpu {
namespace {

// Operands: 0 destination, 1 source, 2 mbarrier; slot[3] size, slot[4] multicast mask.
// immediate: AsyncReduction | AsyncType << 8 | kCluster << 16 (the destination may be another block's).
constexpr int64_t kCluster = 1 << 16;

AsyncReduction operation_of(const Instruction& i) { return static_cast<AsyncReduction>(i.immediate & 0xFF); }
AsyncType type_of(const Instruction& i) { return static_cast<AsyncType>(i.immediate >> 8 & 0xFF); }

uint32_t size_of(Warp& warp, const Instruction& i, uint32_t lane) {
  const uint32_t bytes = warp.u32(i.slot[3])[lane];
  if (bytes % 16 != 0) {
    fault(warp, i, FaultKind::kBadArgument, "the size is " + std::to_string(bytes) + " bytes, want a multiple of 16",
          static_cast<int>(lane));
  }
  return bytes;
}

uint64_t global_address(Warp& warp, const Instruction& i, uint32_t k, uint32_t lane) {
  const uint64_t address = address_of(warp, i, k, lane);
  if (address % 16 != 0) fault_misaligned(warp, i, address, 16, lane, "the global address");
  return address;
}

void count_bytes(Warp& warp, const Instruction& i, uint64_t bytes) {
  if (Counters* c = counters(warp, i)) c->async_bytes += bytes;
}

void load_lane(Warp& warp, const Instruction& i, uint32_t lane) {
  const uint32_t bytes = size_of(warp, i, lane);
  const uint64_t source = global_address(warp, i, 1, lane);
  const bool cluster = i.immediate & kCluster;
  const SharedPlace place = async_place(warp, i, shared_address_of(warp, i, 0, lane), bytes, 16, cluster, lane);
  const MbarrierPlace barrier = mbarrier_of(warp, i, 2, cluster, lane);
  const std::byte* from = bytes == 0 ? nullptr : resolve_global(warp, i, source, bytes, Touch::kAsyncRead, lane);
  count_bytes(warp, i, bytes);
  const Multicast targets = multicast_of(warp, i, i.slot[4], place, barrier, lane);
  for_lanes(targets.ranks, [&](uint32_t rank) {
    const LoadTarget target = begin_load(warp, i, targets, rank, bytes, lane);
    AsyncOperation& operation = add_async(warp, i, lane, "bulk copy");
    operation.writes = target.block;
    operation.complete = [&cluster = *warp.block->cluster, target, from, bytes] {
      if (bytes != 0) std::memcpy(target.block->shared.data() + target.offset, from, bytes);
      finish_load(cluster, target, bytes, bytes);
    };
    submit_async(warp, operation);
  });
}

// To the shared memory of a block of the cluster: a copy or a reduction.
void send_lane(Warp& warp, const Instruction& i, uint32_t lane) {
  const uint32_t bytes = size_of(warp, i, lane);
  const SharedPlace source = async_place(warp, i, shared_address_of(warp, i, 1, lane), bytes, 16, false, lane);
  const SharedPlace place = async_place(warp, i, shared_address_of(warp, i, 0, lane), bytes, 16, true, lane);
  const MbarrierPlace barrier = mbarrier_of(warp, i, 2, true, lane);
  count_bytes(warp, i, bytes);
  const AsyncReduction reduction = operation_of(i);
  const Multicast targets = multicast_of(warp, i, kNoSlot, place, barrier, lane);
  const auto rank = static_cast<uint32_t>(std::countr_zero(targets.ranks));
  const LoadTarget target = begin_load(warp, i, targets, rank, bytes, lane,
                                       reduction == AsyncReduction::kNone ? LoadKind::kWrite : LoadKind::kReduce);
  AsyncOperation& operation = add_async(warp, i, lane, "bulk copy to another block");
  begin_source(warp, i, operation, *source.block, source.offset, bytes, "a bulk copy");
  operation.writes = target.block;
  auto data = std::make_shared<std::vector<std::byte>>(bytes);
  operation.read_source = [source, data] {
    std::memcpy(data->data(), source.block->shared.data() + source.offset, data->size());
  };
  operation.complete = [&cluster = *warp.block->cluster, &operation, target, data, reduction, type = type_of(i)] {
    std::byte* to = target.block->shared.data() + target.offset;
    if (reduction == AsyncReduction::kNone) {
      std::memcpy(to, data->data(), data->size());
    } else {
      reduce_elements(reduction, type, to, data->data(), data->size());
    }
    finish_source(operation, target.barrier->agent, async_time(cluster, target.barrier->agent));
    const auto bytes = static_cast<uint32_t>(data->size());
    finish_load(cluster, target, bytes, bytes);
  };
  submit_async(warp, operation);
}

void store_lane(Warp& warp, const Instruction& i, uint32_t lane) {
  const uint32_t bytes = size_of(warp, i, lane);
  const uint64_t to = global_address(warp, i, 0, lane);
  const SharedPlace source = async_place(warp, i, shared_address_of(warp, i, 1, lane), bytes, 16, false, lane);
  count_bytes(warp, i, bytes);
  if (bytes == 0) return;
  const AsyncReduction reduction = operation_of(i);
  const Touch touch = reduction == AsyncReduction::kNone ? Touch::kWrite : Touch::kAtomic;
  std::byte* target = resolve_global(warp, i, to, bytes, touch, lane);
  AsyncOperation& operation = add_bulk_store(warp, i, lane, source, bytes);
  if (reduction == AsyncReduction::kNone) note_unawaited_write(warp, operation, to, bytes);
  auto data = std::make_shared<std::vector<std::byte>>(bytes);
  operation.read_source = [source, data] {
    std::memcpy(data->data(), source.block->shared.data() + source.offset, data->size());
  };
  operation.complete = [data, target, reduction, type = type_of(i)] {
    if (reduction == AsyncReduction::kNone) {
      std::memcpy(target, data->data(), data->size());
    } else {
      reduce_elements(reduction, type, target, data->data(), data->size());
    }
  };
  submit_async(warp, operation);
}

template <void (*lane_of)(Warp&, const Instruction&, uint32_t)>
void execute_each(Warp& warp, const Instruction& i) {
  for_lanes(warp.active, [&](uint32_t lane) { lane_of(warp, i, lane); });
}

void execute_prefetch(Warp& warp, const Instruction& i) {
  for_lanes(warp.active, [&](uint32_t lane) {
    size_of(warp, i, lane);
    global_address(warp, i, 0, lane);
  });
}

void execute_commit(Warp& warp, const Instruction&) {
  for_lanes(warp.active, [&](uint32_t lane) { ++warp.bulk_committed[lane]; });
}

void execute_wait(Warp& warp, const Instruction& i) {
  wait_bulk_groups(warp, i, warp.active, static_cast<uint32_t>(i.immediate), i.extra[0]);
}

void decode_wait(Decoder& d) {
  d.out.extra[0] = d.take("read");
  if (d.operand(0).kind != ptx::OperandKind::kImmediate) d.unknown("wants a constant");
  d.out.immediate = static_cast<int64_t>(d.operand(0).bits);
  d.out.execute = execute_wait;
}

// The first two modifiers that name a space: where to and where from.
std::pair<std::string, std::string> take_spaces(Decoder& d) {
  std::string spaces[2];
  for (std::string& space : spaces) {
    for (const std::string& m : d.rest()) {
      if (m == "global" || m == "shared::cta" || m == "shared::cluster") {
        space = m;
        break;
      }
    }
    d.take(space);
  }
  return {spaces[0], spaces[1]};
}

void decode_copy(Decoder& d, bool reduction) {
  const auto [to, from] = take_spaces(d);
  const bool to_global = to == "global";
  if (to_global ? from != "shared::cta"
                : !to.starts_with("shared::") || from == "shared::cluster" || from.empty() ||
                      (from == "shared::cta" && to != "shared::cluster") || (reduction && from == "global")) {
    d.unknown("cannot copy from ." + from + " to ." + to);
  }
  if (!d.take(to_global ? "bulk_group" : "mbarrier::complete_tx::bytes")) {
    d.unknown(std::string("wants .") + (to_global ? "bulk_group" : "mbarrier::complete_tx::bytes"));
  }
  if (d.take("cp_mask")) d.unsupported(".cp_mask");
  if (d.take("ignore_oob")) d.unsupported(".ignore_oob");
  const bool multicast = d.take("multicast::cluster");
  if (multicast && (from != "global" || to != "shared::cluster"))
    d.unknown(".multicast::cluster goes from global memory only");
  if (reduction) {
    const AsyncReduction operation = take_reduction(d);
    const bool noftz = d.take("noftz");
    const TypeInfo named = d.take_type();
    AsyncType type{};
    if (!reduction_type(named.name, type) || !has_reduction(operation, type))
      d.unknown("has no such reduction of ." + named.name);
    const bool small = type == AsyncType::kF16 || type == AsyncType::kBf16;
    if (noftz != (small && operation == AsyncReduction::kAdd))
      d.unknown(".noftz goes with .add of .f16 and .bf16, and with those always");
    const bool narrow = bytes_of(type) == 4 && type != AsyncType::kF32;
    if (!to_global && !narrow && !(type == AsyncType::kU64 && operation == AsyncReduction::kAdd)) {
      d.unknown("has no such reduction of ." + named.name + " in shared memory");
    }
    d.out.immediate = static_cast<int64_t>(operation) | static_cast<int64_t>(type) << 8;
    d.note_access(ptx::Space::kShared, bytes_of(type));
    d.note_access(ptx::Space::kGlobal, bytes_of(type));
  }
  const size_t operands = take_cache_hint(d);
  const size_t wanted = (to_global ? 3u : 4u) + multicast;
  if (operands != wanted) d.unknown("wants " + std::to_string(wanted) + " operands");
  set_address(d, 0, d.operand(0), to_global ? ptx::Space::kGlobal : ptx::Space::kShared);
  set_address(d, 1, d.operand(1), from == "global" ? ptx::Space::kGlobal : ptx::Space::kShared);
  d.out.slot[3] = d.source(2, type_info("u32"));
  if (!to_global) set_address(d, 2, d.operand(3), ptx::Space::kShared);
  if (multicast) d.out.slot[4] = d.source(4, type_info("u16"));
  if (to == "shared::cluster") d.out.immediate |= kCluster;
  d.out.execute = to_global          ? execute_each<store_lane>
                  : from == "global" ? execute_each<load_lane>
                                     : execute_each<send_lane>;
}

void decode_prefetch(Decoder& d) {
  if (!d.take("L2") || !d.take("global")) d.unknown("wants .L2.global");
  take_cache_hint(d);
  set_address(d, 0, d.operand(0), ptx::Space::kGlobal);
  d.out.slot[3] = d.source(1, type_info("u32"));
  d.out.execute = execute_prefetch;
}

void decode_reduction(Decoder& d) {
  d.out.kind = InstructionClass::kAsync;
  if (!d.take("async") || !d.take("bulk")) d.unknown("wants cp.reduce.async.bulk");
  if (d.take("tensor")) return decode_tensor(d, true);
  decode_copy(d, true);
}

const RegisterDecoders kRegistered({{"cp.reduce", [](Decoder& d) {
                                       d.take("reduce");
                                       decode_reduction(d);
                                     }}});

}  // namespace

void decode_bulk(Decoder& d) {
  if (d.take("commit_group")) {
    d.out.execute = execute_commit;
  } else if (d.take("wait_group")) {
    decode_wait(d);
  } else if (d.take("prefetch")) {
    if (d.take("tensor")) return decode_tensor_prefetch(d);
    decode_prefetch(d);
  } else if (d.take("tensor")) {
    decode_tensor(d, false);
  } else {
    decode_copy(d, false);
  }
}

Multicast multicast_of(Warp& warp, const Instruction& i, Slot mask, SharedPlace place, MbarrierPlace barrier,
                       uint32_t lane) {
  Multicast m{1u << place.block->rank, place.offset, barrier.barrier->offset};
  if (place.block != barrier.block) {
    fault(warp, i, FaultKind::kBadArgument, "the mbarrier and the destination are in different blocks of the cluster",
          static_cast<int>(lane));
  }
  if (mask == kNoSlot) return m;
  m.ranks = warp.u32(mask)[lane] & 0xFFFF;
  const size_t blocks = warp.block->cluster->blocks.size();
  if (m.ranks == 0 || m.ranks >> blocks != 0) {
    fault(warp, i, FaultKind::kBadArgument,
          "the multicast mask is " + std::to_string(m.ranks) + " in a cluster of " + std::to_string(blocks) + " blocks",
          static_cast<int>(lane));
  }
  return m;
}

LoadTarget begin_load(Warp& warp, const Instruction& i, const Multicast& m, uint32_t rank, uint32_t bytes,
                      uint32_t lane, LoadKind kind) {
  Block& block = *warp.block->cluster->blocks[rank];
  if (&block != warp.block && block.exited == block.threads) {
    fault(warp, i, FaultKind::kUseAfterFree,
          "block " + std::to_string(rank) + " of the cluster, which the copy goes to, has ended",
          static_cast<int>(lane));
  }
  Mbarrier& barrier = mbarrier_at(warp, i, block, m.barrier_offset, lane);
  if (bytes != 0 && warp.checks()) {
    if (kind != LoadKind::kReduce) {
      block.shadow.begin_write(warp, i, block, lane, m.offset, bytes, kind == LoadKind::kWrite);
    } else {
      block.shadow.atomic(warp, i, block, lane, m.offset, bytes);
    }
  }
  ++barrier.in_flight;
  barrier.delivered_pc = i.index;
  LoadTarget target{&block, &barrier, m.offset, kind, {}};
  if (kind == LoadKind::kReduce) target.reducer = {warp.clocks.self, 1u << lane, warp.clocks.now};
  return target;
}

void finish_load(Cluster& cluster, const LoadTarget& target, uint32_t written, uint32_t transactions) {
  Mbarrier& barrier = *target.barrier;
  if (target.kind != LoadKind::kReduce) {
    deliver(cluster, *target.block, barrier, target.offset, written);
  } else if (cluster.launch->options.checks) {
    // A reduction is known as an atomic of its issuer: waiters learn of that.
    Knowledge issuer(cluster.agents);
    issuer.partial.push_back(target.reducer);
    barrier.arriving.join(issuer);
  }
  --barrier.in_flight;
  mbarrier_complete_bytes(cluster, barrier, transactions);
}

void note_unawaited_write(Warp& warp, const AsyncOperation& operation, uint64_t begin, uint64_t bytes) {
  // Kernels that only ever wait for .read leave their stores behind: the oldest are forgotten.
  constexpr size_t kMost = 2048;
  if (!warp.checks()) return;
  auto& writes = warp.block->cluster->unawaited_writes;
  if (writes.size() >= kMost) writes.erase(writes.begin(), writes.begin() + kMost / 2);
  writes.push_back({&warp, operation.lane, operation.group, operation.pc, begin, begin + bytes});
}

AsyncOperation& add_bulk_store(Warp& warp, const Instruction& i, uint32_t lane, SharedPlace source, uint32_t bytes) {
  AsyncOperation& operation = add_async(warp, i, lane, "bulk store");
  operation.bulk_group = true;
  operation.group = warp.bulk_committed[lane];
  begin_source(warp, i, operation, *source.block, source.offset, bytes, "a bulk store");
  return operation;
}

}  // namespace vgpu
