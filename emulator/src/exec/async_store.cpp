// st.async and red.async: each lane writes to the shared memory of a block of the cluster, and an mbarrier there counts
// the bytes.
#include <algorithm>
#include <bit>
#include <cstring>

#include "exec/async_reduce.h"
#include "exec/bulk.h"

namespace vgpu {
namespace {

// Operands: 0 destination, 2 mbarrier; list: the values. immediate: AsyncReduction | AsyncType << 8;
// extra[1]: bytes of an element.
struct Remote {
  LoadTarget target;
  std::array<std::byte, 16> value;
};

Remote issue_lane(Warp& warp, const Instruction& i, uint32_t lane, uint32_t bytes) {
  const SharedPlace place = async_place(warp, i, shared_address_of(warp, i, 0, lane), bytes, bytes, true, lane);
  const MbarrierPlace barrier = mbarrier_of(warp, i, 2, true, lane);
  const Multicast where = multicast_of(warp, i, kNoSlot, place, barrier, lane);
  Remote remote;
  remote.target = begin_load(warp, i, where, place.block->rank, bytes, lane,
                             i.immediate == 0 ? LoadKind::kStore : LoadKind::kReduce);
  for (size_t k = 0; k < i.list.size(); ++k) {
    std::byte* to = remote.value.data() + k * i.extra[1];
    if (i.extra[1] == 8) {
      std::memcpy(to, &warp.u64(i.list[k])[lane], 8);
    } else {
      std::memcpy(to, &warp.u32(i.list[k])[lane], 4);
    }
  }
  return remote;
}

void execute(Warp& warp, const Instruction& i) {
  const uint32_t bytes = i.extra[1] * static_cast<uint32_t>(i.list.size());
  std::vector<Remote> remotes;
  for_lanes(warp.active, [&](uint32_t lane) { remotes.push_back(issue_lane(warp, i, lane, bytes)); });
  if (Counters* c = counters(warp, i)) c->async_bytes += uint64_t{bytes} * remotes.size();
  const auto lane = static_cast<uint32_t>(std::countr_zero(warp.active));
  const auto reduction = static_cast<AsyncReduction>(i.immediate & 0xFF);
  const auto type = static_cast<AsyncType>(i.immediate >> 8 & 0xFF);
  // One operation for each mbarrier.
  while (!remotes.empty()) {
    const Mbarrier* barrier = remotes.front().target.barrier;
    auto rest = std::stable_partition(remotes.begin(), remotes.end(),
                                      [&](const Remote& r) { return r.target.barrier == barrier; });
    std::vector<Remote> same(remotes.begin(), rest);
    remotes.erase(remotes.begin(), rest);
    AsyncOperation& operation = add_async(warp, i, lane, reduction == AsyncReduction::kNone ? "st.async" : "red.async");
    operation.writes = same.front().target.block;
    operation.complete = [&cluster = *warp.block->cluster, same = std::move(same), reduction, type, bytes] {
      for (const Remote& r : same) {
        std::byte* to = r.target.block->shared.data() + r.target.offset;
        if (reduction == AsyncReduction::kNone) {
          std::memcpy(to, r.value.data(), bytes);
        } else {
          reduce_elements(reduction, type, to, r.value.data(), bytes);
        }
        finish_load(cluster, r.target, bytes, bytes);
      }
    };
    submit_async(warp, operation);
  }
}

void take_space(Decoder& d) {
  if (d.take("global")) d.unsupported("an asynchronous store to global memory");
  const ptx::Space space = d.take("shared::cluster") ? ptx::Space::kShared : ptx::Space::kNone;
  if (!d.take("mbarrier::complete_tx::bytes")) d.unknown("wants .mbarrier::complete_tx::bytes");
  set_address(d, 0, d.operand(0), space);
  set_address(d, 2, d.operand(2), space);
}

void set_values(Decoder& d, const TypeInfo& type, size_t count) {
  const ptx::Operand& value = d.operand(1);
  if (count == 1 && value.kind != ptx::OperandKind::kVector) {
    d.out.list.push_back(d.source(value, type));
  } else if (value.kind == ptx::OperandKind::kVector && value.elements.size() == count) {
    for (const ptx::Operand& element : value.elements) d.out.list.push_back(d.source(element, type));
  } else {
    d.unknown("wants " + std::to_string(count) + " values");
  }
  d.out.extra[1] = type.bits / 8;
  d.note_access(ptx::Space::kShared, type.bits / 8);
}

}  // namespace

void decode_async_store(Decoder& d) {
  d.out.kind = InstructionClass::kAsync;
  d.take("async");
  d.take("weak");
  take_space(d);
  const std::string vector = d.take_any({"v2", "v4"});
  const TypeInfo type = d.take_type();
  if (type.bits != 32 && type.bits != 64) d.unknown("stores 32 or 64 bits");
  const size_t count = vector == "v4" ? 4 : vector == "v2" ? 2 : 1;
  if (type.bits * count > 128) d.unknown("stores at most 128 bits");
  set_values(d, type, count);
  d.out.execute = execute;
}

void decode_async_reduction(Decoder& d) {
  d.out.kind = InstructionClass::kAsync;
  d.take("async");
  if (!d.take("relaxed") || !d.take("cluster")) d.unknown("wants .relaxed.cluster");
  take_space(d);
  const AsyncReduction operation = take_reduction(d);
  const TypeInfo type = d.take_type();
  AsyncType element{};
  const bool known =
      reduction_type(type.name, element) && has_reduction(operation, element) && type.kind != TypeInfo::kFloat;
  if (!known || (type.bits == 64 && !(operation == AsyncReduction::kAdd && element == AsyncType::kU64))) {
    d.unknown("has no such reduction of ." + type.name);
  }
  d.out.immediate = static_cast<int64_t>(operation) | static_cast<int64_t>(element) << 8;
  set_values(d, type, 1);
  d.out.execute = execute;
}

namespace {
const RegisterDecoders kRegistered({{"st.async", decode_async_store}, {"red.async", decode_async_reduction}});
}  // namespace

}  // namespace vgpu
