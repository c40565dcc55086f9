// cp.async.bulk.tensor and cp.reduce.async.bulk.tensor in tile mode.
#include "exec/tensor_copy.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "exec/async_reduce.h"
#include "exec/bulk.h"
#include "exec/number_formats.h"

namespace vgpu {
namespace {

// Operands: 0 shared memory, 1 tensor map, 2 mbarrier; slot[4] multicast mask; list: coordinates.
// immediate: AsyncReduction | kCluster (the destination may be another block's).
constexpr int64_t kCluster = 1 << 16;
constexpr uint32_t kSharedAlign = 128;

AsyncReduction operation_of(const Instruction& i) { return static_cast<AsyncReduction>(i.immediate & 0xFF); }

[[noreturn]] void bad_map(Warp& warp, const Instruction& i, const std::string& why, uint64_t address, uint32_t lane) {
  fault_at(warp, i, FaultKind::kBadDescriptor, "the tensor map cannot be used: " + why, static_cast<int>(lane),
           address);
}

[[noreturn]] void not_modelled(Warp& warp, const Instruction& i, const std::string& what, uint32_t lane) {
  fault(warp, i, FaultKind::kUnsupported, what + " is not modelled", static_cast<int>(lane));
}

TensorBox box_of(Warp& warp, const Instruction& i, uint32_t lane) {
  TensorBox box;
  const uint64_t address = address_of(warp, i, 1, lane);
  box.map = tensor_map_at(warp, i, address, lane);
  const TensorMap& map = box.map;
  if (map.rank != i.list.size()) {
    bad_map(warp, i,
            "it has rank " + std::to_string(map.rank) + ", the instruction is for " + std::to_string(i.list.size()),
            address, lane);
  }
  if (element_bits(map.type) < 8) not_modelled(warp, i, std::string("a tensor of type ") + name(map.type), lane);
  if (map.interleave != TensorMapInterleave::kNone) not_modelled(warp, i, "an interleaved tensor", lane);
  if (map.swizzle > TensorMapSwizzle::k128B)
    not_modelled(warp, i, "a swizzle with an atom of other than 16 bytes", lane);
  for (uint32_t k = 0; k < map.rank; ++k) box.coordinates[k] = static_cast<int32_t>(warp.u32(i.list[k])[lane]);
  // Rows narrower than the swizzle's span: where the next row begins is not documented.
  const uint32_t span = swizzle_span(map.swizzle);
  if (span != 0 && box.row_bytes() < span && map.box_bytes() > box.row_bytes()) {
    not_modelled(
        warp, i,
        "a box with rows of " + std::to_string(box.row_bytes()) + " bytes and a swizzle of " + std::to_string(span),
        lane);
  }
  return box;
}

// What an element outside of the tensor becomes.
void fill_outside(const TensorMap& map, std::byte* to, size_t bytes) {
  std::memset(to, 0, bytes);
  if (!map.fill_nan) return;
  const uint32_t element = element_bits(map.type) / 8;
  const uint64_t nan = element == 2 ? kHalfNan : element == 4 ? kFloatNan : Double::kNan;
  for (size_t at = 0; at < bytes; at += element) std::memcpy(to + at, &nan, element);
}

void flush_subnormals(const TensorMap& map, std::byte* data, size_t bytes) {
  if (map.type != TensorMapType::kF32Ftz && map.type != TensorMapType::kTf32Ftz) return;
  for (size_t at = 0; at < bytes; at += 4) {
    uint32_t u;
    std::memcpy(&u, data + at, 4);
    if ((u & 0x7F800000) == 0) u &= 0x80000000;
    std::memcpy(data + at, &u, 4);
  }
}

// A row's bytes to or from where they lie in shared memory; `copy` gets the shared bytes and the row's.
template <class F>
void for_row_bytes(std::byte* shared, uint32_t start, std::byte* row, uint32_t bytes, TensorMapSwizzle swizzle,
                   F&& copy) {
  if (swizzle == TensorMapSwizzle::kNone) {
    copy(shared + start, row, bytes);
    return;
  }
  for (uint32_t at = 0; at < bytes; at += 16) copy(shared + swizzled(start + at, swizzle), row + at, 16u);
}

void fill_from_global(const TensorBox& box, const std::vector<BoxRow>& rows, Block& block, uint32_t offset) {
  const uint32_t bytes = box.row_bytes(), element = box.element_bytes();
  std::vector<std::byte> line(bytes);
  for (const BoxRow& row : rows) {
    if (row.first != 0 || row.last != box.map.box[0]) fill_outside(box.map, line.data(), bytes);
    if (row.first != row.last) {
      const size_t inside = size_t{row.last - row.first} * element;
      std::memcpy(line.data() + size_t{row.first} * element, reinterpret_cast<const std::byte*>(row.address), inside);
      flush_subnormals(box.map, line.data() + size_t{row.first} * element, inside);
    }
    for_row_bytes(block.shared.data(), offset + row.number * bytes, line.data(), bytes, box.map.swizzle,
                  [](std::byte* shared, std::byte* data, uint32_t n) { std::memcpy(shared, data, n); });
  }
}

void check_rows(Warp& warp, const Instruction& i, const TensorBox& box, const std::vector<BoxRow>& rows, Touch touch,
                uint32_t lane) {
  for (const BoxRow& row : rows) {
    if (row.first != row.last)
      resolve_global(warp, i, row.address, (row.last - row.first) * box.element_bytes(), touch, lane);
  }
}

void count_bytes(Warp& warp, const Instruction& i, uint64_t bytes) {
  if (Counters* c = counters(warp, i)) c->async_bytes += bytes;
}

void load_lane(Warp& warp, const Instruction& i, uint32_t lane) {
  const bool cluster = i.immediate & kCluster;
  auto box = std::make_shared<const TensorBox>(box_of(warp, i, lane));
  const uint32_t bytes = box->map.box_bytes();
  const SharedPlace place =
      async_place(warp, i, shared_address_of(warp, i, 0, lane), bytes, kSharedAlign, cluster, lane);
  const MbarrierPlace barrier = mbarrier_of(warp, i, 2, cluster, lane);
  auto rows = std::make_shared<const std::vector<BoxRow>>(box->rows());
  check_rows(warp, i, *box, *rows, Touch::kAsyncRead, lane);
  const Multicast targets = multicast_of(warp, i, i.slot[4], place, barrier, lane);
  count_bytes(warp, i, bytes);
  for_lanes(targets.ranks, [&](uint32_t rank) {
    const LoadTarget target = begin_load(warp, i, targets, rank, bytes, lane);
    AsyncOperation& operation = add_async(warp, i, lane, "tensor copy");
    operation.writes = target.block;
    operation.complete = [&cluster = *warp.block->cluster, target, box, rows, bytes] {
      fill_from_global(*box, *rows, *target.block, target.offset);
      finish_load(cluster, target, bytes, bytes);
    };
    submit_async(warp, operation);
  });
}

void store_lane(Warp& warp, const Instruction& i, uint32_t lane) {
  auto box = std::make_shared<const TensorBox>(box_of(warp, i, lane));
  const uint32_t bytes = box->map.box_bytes();
  const SharedPlace source =
      async_place(warp, i, shared_address_of(warp, i, 0, lane), bytes, kSharedAlign, false, lane);
  const AsyncReduction reduction = operation_of(i);
  AsyncType type{};
  if (reduction != AsyncReduction::kNone && !(reduction_type(box->map.type, type) && has_reduction(reduction, type))) {
    bad_map(warp, i, std::string("there is no such reduction of type ") + name(box->map.type),
            address_of(warp, i, 1, lane), lane);
  }
  auto rows = std::make_shared<const std::vector<BoxRow>>(box->rows());
  check_rows(warp, i, *box, *rows, reduction == AsyncReduction::kNone ? Touch::kWrite : Touch::kAtomic, lane);
  count_bytes(warp, i, bytes);
  AsyncOperation& operation = add_bulk_store(warp, i, lane, source, bytes);
  for (const BoxRow& row : *rows) {
    if (reduction != AsyncReduction::kNone || row.first == row.last) continue;
    note_unawaited_write(warp, operation, row.address, uint64_t{row.last - row.first} * box->element_bytes());
  }
  auto data = std::make_shared<std::vector<std::byte>>(bytes);
  operation.read_source = [source, box, data] {
    const uint32_t row = box->row_bytes();
    for (uint32_t at = 0; at < data->size(); at += row) {
      for_row_bytes(source.block->shared.data(), source.offset + at, data->data() + at, row, box->map.swizzle,
                    [](std::byte* shared, std::byte* to, uint32_t n) { std::memcpy(to, shared, n); });
    }
  };
  operation.complete = [box, rows, data, reduction, type] {
    const uint32_t element = box->element_bytes();
    for (const BoxRow& row : *rows) {
      if (row.first == row.last) continue;
      auto* to = reinterpret_cast<std::byte*>(row.address);
      const std::byte* from = data->data() + row.number * box->row_bytes() + row.first * element;
      const size_t n = size_t{row.last - row.first} * element;
      if (reduction == AsyncReduction::kNone) {
        std::memcpy(to, from, n);
      } else {
        reduce_elements(reduction, type, to, from, n);
      }
    }
  };
  submit_async(warp, operation);
}

void execute_load(Warp& warp, const Instruction& i) {
  for_lanes(warp.active, [&](uint32_t lane) { load_lane(warp, i, lane); });
}
void execute_store(Warp& warp, const Instruction& i) {
  for_lanes(warp.active, [&](uint32_t lane) { store_lane(warp, i, lane); });
}
void execute_prefetch(Warp& warp, const Instruction& i) {
  for_lanes(warp.active, [&](uint32_t lane) { box_of(warp, i, lane); });
}

void take_mode(Decoder& d) {
  for (const std::string& m : d.rest()) {
    if (m.starts_with("im2col") || m.starts_with("tile::")) d.unsupported("the mode ." + m);
    if (m.starts_with("cta_group::")) d.unsupported("." + m);
  }
  d.take("tile");
}

uint32_t take_rank(Decoder& d) {
  const std::string rank = d.take_any({"1d", "2d", "3d", "4d", "5d"});
  if (rank.empty()) d.unknown("wants a rank, .1d to .5d");
  return static_cast<uint32_t>(rank[0] - '0');
}

// [map, {coordinates}]
void set_tensor(Decoder& d, const ptx::Operand& operand, uint32_t rank) {
  if (operand.kind != ptx::OperandKind::kAddress || operand.elements.size() != 2) {
    d.unknown("wants a tensor map and its coordinates in brackets");
  }
  set_address(d, 1, operand, ptx::Space::kNone);
  const ptx::Operand& coordinates = operand.elements[1];
  if (coordinates.kind != ptx::OperandKind::kVector || coordinates.elements.size() != rank) {
    d.unknown("wants " + std::to_string(rank) + " coordinates");
  }
  for (const ptx::Operand& c : coordinates.elements) d.out.list.push_back(d.source(c, type_info("s32")));
}

}  // namespace

std::vector<BoxRow> TensorBox::rows() const {
  const int64_t width = map.box[0], start = coordinates[0], end = static_cast<int64_t>(map.dim(0));
  const auto first = static_cast<uint32_t>(std::clamp<int64_t>(-start, 0, width));
  const auto last = static_cast<uint32_t>(std::clamp<int64_t>(end - start, first, width));
  uint32_t count = 1;
  for (uint32_t k = 1; k < map.rank; ++k) count *= map.count(k);
  std::vector<BoxRow> rows(count);
  for (uint32_t number = 0; number < count; ++number) {
    BoxRow& row = rows[number];
    row.number = number;
    int64_t offset = (start + first) * static_cast<int64_t>(element_bytes());
    bool inside = first < last;
    for (uint32_t k = 1, rest = number; k < map.rank; ++k) {
      const int64_t at = coordinates[k] + static_cast<int64_t>(rest % map.count(k)) * map.element_strides[k];
      rest /= map.count(k);
      inside &= at >= 0 && at < static_cast<int64_t>(map.dim(k));
      offset += at * static_cast<int64_t>(map.stride(k));
    }
    if (!inside) continue;
    row.address = map.address + static_cast<uint64_t>(offset);
    row.first = first;
    row.last = last;
  }
  return rows;
}

TensorMap tensor_map_at(Warp& warp, const Instruction& i, uint64_t address, uint32_t lane) {
  if (address % 64 != 0) fault_misaligned(warp, i, address, 64, lane, "the tensor map");
  TensorMap map;
  const uint64_t window = address >> kWindowShift;
  if (window == kParameterWindow >> kWindowShift) {
    const uint64_t at = static_cast<uint32_t>(address);
    const std::vector<std::byte>& parameters = warp.launch->parameters;
    if (at + sizeof map > parameters.size()) {
      fault_at(warp, i, FaultKind::kOutOfBounds, "the tensor map reaches beyond the kernel's parameters",
               static_cast<int>(lane), address);
    }
    std::memcpy(&map, parameters.data() + at, sizeof map);
  } else if (window == 0) {
    std::memcpy(&map, resolve_global(warp, i, address, sizeof map, Touch::kAsyncRead, lane), sizeof map);
  } else {
    bad_map(warp, i, "it is neither a parameter nor in global memory", address, lane);
  }
  if (std::string why = problem(map); !why.empty()) bad_map(warp, i, why, address, lane);
  const auto& modified = warp.block->cluster->modified_maps;
  if (auto it = modified.find(address); it != modified.end() && !it->second && warp.checks()) {
    fault_at(
        warp, i, FaultKind::kMissingProxyFence,
        "the kernel has changed this tensor map, and no fence.proxy.tensormap::generic.acquire came before its use",
        static_cast<int>(lane), address);
  }
  return map;
}

uint32_t swizzled(uint32_t address, TensorMapSwizzle swizzle) {
  switch (swizzle) {
    case TensorMapSwizzle::k32B:
      return address ^ (address >> 3 & 0x10);
    case TensorMapSwizzle::k64B:
      return address ^ (address >> 3 & 0x30);
    case TensorMapSwizzle::k128B:
      return address ^ (address >> 3 & 0x70);
    default:
      return address;
  }
}

void decode_tensor(Decoder& d, bool reduction) {
  const uint32_t rank = take_rank(d);
  const bool store = std::ranges::find(d.rest(), "bulk_group") != d.rest().end();
  take_mode(d);
  if (store) {
    if (!d.take("global") || !d.take("shared::cta") || !d.take("bulk_group"))
      d.unknown("wants .global.shared::cta.bulk_group");
    if (reduction) {
      const AsyncReduction operation = take_reduction(d);
      if (operation == AsyncReduction::kNone) d.unknown("wants an operation");
      d.out.immediate = static_cast<int64_t>(operation);
    }
    if (take_cache_hint(d) != 2) d.unknown("wants a tensor and a shared address");
    set_tensor(d, d.operand(0), rank);
    set_address(d, 0, d.operand(1), ptx::Space::kShared);
    d.out.execute = execute_store;
  } else {
    if (reduction) d.unknown("wants .bulk_group");
    const std::string to = d.take_any({"shared::cluster", "shared::cta"});
    if (to.empty() || !d.take("global") || !d.take("mbarrier::complete_tx::bytes")) {
      d.unknown("wants a destination in shared memory, .global and .mbarrier::complete_tx::bytes");
    }
    const bool multicast = d.take("multicast::cluster");
    if (multicast && to != "shared::cluster") d.unknown(".multicast::cluster goes to .shared::cluster");
    const size_t operands = take_cache_hint(d);
    if (operands != 3u + multicast) d.unknown("has the wrong number of operands");
    set_address(d, 0, d.operand(0), ptx::Space::kShared);
    set_tensor(d, d.operand(1), rank);
    set_address(d, 2, d.operand(2), ptx::Space::kShared);
    if (multicast) d.out.slot[4] = d.source(3, type_info("u16"));
    if (to == "shared::cluster") d.out.immediate = kCluster;
    d.out.execute = execute_load;
  }
}

void decode_tensor_prefetch(Decoder& d) {
  const uint32_t rank = take_rank(d);
  take_mode(d);
  if (!d.take("L2") || !d.take("global")) d.unknown("wants .L2.global");
  if (take_cache_hint(d) != 1) d.unknown("wants a tensor");
  set_tensor(d, d.operand(0), rank);
  d.out.execute = execute_prefetch;
}

}  // namespace vgpu
