// tensormap.replace and tensormap.cp_fenceproxy: tensor maps that kernels change, and fence.proxy.tensormap.
#include <algorithm>
#include <bit>
#include <cstring>

#include "exec/async.h"
#include "runtime/tensor_map.h"

namespace vgpu {
namespace {

// replace: operand 0 is the map; slot[1] the value, slot[2] the dimension; extra[3]: Field; extra[4]: Place.
enum Field : uint8_t {
  kGlobalAddress,
  kRank,
  kBoxDim,
  kGlobalDim,
  kGlobalStride,
  kElementStride,
  kElemtype,
  kInterleaveLayout,
  kSwizzleMode,
  kSwizzleAtomicity,
  kFillMode,
};
constexpr const char* kFields[] = {
    "global_address", "rank",     "box_dim",           "global_dim",   "global_stride",
    "element_stride", "elemtype", "interleave_layout", "swizzle_mode", "swizzle_atomicity",
    "fill_mode"};
enum Place : uint8_t { kInGlobal, kInShared, kAnywhere };

bool has_dimension(uint32_t field) { return field >= kBoxDim && field <= kElementStride; }
bool is_constant(uint32_t field) { return field >= kElemtype; }

std::string replace(TensorMap& map, uint32_t field, uint32_t dimension, uint64_t value) {
  const auto small = static_cast<uint32_t>(value);
  switch (field) {
    case kGlobalAddress:
      return replace_global_address(map, value);
    case kRank:
      return replace_rank(map, small);
    case kBoxDim:
      return replace_box_dim(map, dimension, small);
    case kGlobalDim:
      return replace_global_dim(map, dimension, small);
    case kGlobalStride:
      return replace_global_stride(map, dimension, value);
    case kElementStride:
      return replace_element_stride(map, dimension, small);
    case kElemtype:
      return replace_elemtype(map, small);
    case kInterleaveLayout:
      return replace_interleave_layout(map, small);
    case kSwizzleMode:
      return replace_swizzle_mode(map, small);
    case kSwizzleAtomicity:
      return replace_swizzle_atomicity(map, small);
    default:
      return replace_fill_mode(map, small);
  }
}

// The map's bytes, checked as read and written by this lane.
std::byte* bytes_of_map(Warp& warp, const Instruction& i, uint64_t address, bool shared, uint32_t lane) {
  if (shared) {
    const SharedPlace place = async_place(warp, i, static_cast<uint32_t>(address), sizeof(TensorMap), 64, false, lane);
    if (warp.checks()) {
      place.block->shadow.read(warp, i, *place.block, lane, place.offset, sizeof(TensorMap));
      place.block->shadow.write(warp, i, *place.block, lane, place.offset, sizeof(TensorMap));
    }
    return place.block->shared.data() + place.offset;
  }
  if (address % 64 != 0) fault_misaligned(warp, i, address, 64, lane, "the tensor map");
  resolve_global(warp, i, address, sizeof(TensorMap), Touch::kRead, lane);
  warp.block->cluster->modified_maps[address] = false;
  return resolve_global(warp, i, address, sizeof(TensorMap), Touch::kWrite, lane);
}

void execute_replace(Warp& warp, const Instruction& i) {
  uint64_t last = 0;
  std::byte* bytes = nullptr;
  for_lanes(warp.active, [&](uint32_t lane) {
    const uint64_t address = address_of(warp, i, 0, lane);
    const bool shared = i.extra[4] == kInShared || (i.extra[4] == kAnywhere && address >> kWindowShift != 0);
    // Lanes that do the same do it once.
    if (bytes == nullptr || address != last) bytes = bytes_of_map(warp, i, address, shared, lane);
    last = address;
    TensorMap map;
    std::memcpy(&map, bytes, sizeof map);
    // Kernels make maps out of zeros: an empty map, each of whose fields they then replace.
    const bool zeros = std::all_of(bytes, bytes + sizeof map, [](std::byte b) { return b == std::byte{0}; });
    if (zeros) map.magic = TensorMap::kMagic;
    std::string why = map.magic == TensorMap::kMagic ? "" : "these 128 bytes are no tensor map";
    const bool wide = i.extra[3] == kGlobalAddress || i.extra[3] == kGlobalStride;
    const uint64_t value = wide ? warp.u64(i.slot[1])[lane] : warp.u32(i.slot[1])[lane];
    const uint32_t dimension = i.slot[2] == kNoSlot ? 0 : warp.u32(i.slot[2])[lane];
    if (why.empty()) why = replace(map, i.extra[3], dimension, value);
    if (!why.empty()) {
      fault_at(warp, i, FaultKind::kBadDescriptor, "the tensor map cannot be changed: " + why, static_cast<int>(lane),
               address);
    }
    std::memcpy(bytes, &map, sizeof map);
  });
}

// One copy of 128 bytes for the whole warp, from shared to global memory.
void execute_copy(Warp& warp, const Instruction& i) {
  if (!converged(warp, i)) return;
  const auto lane = static_cast<uint32_t>(std::countr_zero(warp.active));
  const uint64_t to = address_of(warp, i, 0, lane);
  const uint32_t from = shared_address_of(warp, i, 1, lane);
  for_lanes(warp.active, [&](uint32_t other) {
    if (address_of(warp, i, 0, other) != to || shared_address_of(warp, i, 1, other) != from) {
      fault(warp, i, FaultKind::kDivergentCollective, "the lanes of the warp name different tensor maps",
            static_cast<int>(other));
    }
  });
  if (to % 128 != 0) fault_misaligned(warp, i, to, 128, lane, "the tensor map");
  const SharedPlace source = async_place(warp, i, from, sizeof(TensorMap), 128, false, lane);
  if (warp.checks()) source.block->shadow.read(warp, i, *source.block, kWholeWarp, source.offset, sizeof(TensorMap));
  std::byte* target = resolve_global(warp, i, to, sizeof(TensorMap), Touch::kWrite, lane);
  std::memcpy(target, source.block->shared.data() + source.offset, sizeof(TensorMap));
  warp.block->cluster->modified_maps[to] = false;
  if (warp.checks()) {
    warp.clocks.fence_wide();
    warp.fence = warp.clocks.release(warp.active, warp.alive);
    warp.has_fence = warp.has_wide_fence = true;
  }
  advance(warp);
}

void check_size(Decoder& d, size_t k) {
  const ptx::Operand& size = d.operand(k);
  if (size.kind != ptx::OperandKind::kImmediate || size.bits != sizeof(TensorMap)) d.unknown("wants a size of 128");
}

void decode_replace(Decoder& d) {
  if (!d.take("tile")) d.unsupported("a tensor map of another mode than .tile");
  uint32_t field = 0;
  while (field < std::size(kFields) && !d.take(kFields[field])) ++field;
  if (field == std::size(kFields)) d.unknown("wants a field of the tensor map");
  const bool global = d.take("global"), shared = !global && d.take("shared::cta");
  const bool wide = field == kGlobalAddress || field == kGlobalStride;
  if (!d.take("b1024") || !d.take(wide ? "b64" : "b32"))
    d.unknown(std::string("wants .b1024 and .") + (wide ? "b64" : "b32"));
  set_address(d, 0, d.operand(0), global ? ptx::Space::kGlobal : shared ? ptx::Space::kShared : ptx::Space::kNone);
  size_t k = 1;
  if (has_dimension(field)) d.out.slot[2] = d.source(k++, type_info("u32"));
  if (is_constant(field) && d.operand(k).kind != ptx::OperandKind::kImmediate) d.unknown("wants a constant");
  d.out.slot[1] = d.source(k++, type_info(wide ? "b64" : "b32"));
  if (d.operands() != k) d.unknown("has too many operands");
  d.out.extra[3] = field;
  d.out.extra[4] = global ? kInGlobal : shared ? kInShared : kAnywhere;
  d.out.execute = execute_replace;
}

void decode_copy(Decoder& d) {
  for (const char* m : {"global", "shared::cta", "tensormap::generic", "release", "sync", "aligned"}) {
    if (!d.take(m)) d.unknown(std::string("wants .") + m);
  }
  if (d.take_any({"cta", "cluster", "gpu", "sys"}).empty()) d.unknown("wants a scope");
  set_address(d, 0, d.operand(0), ptx::Space::kGlobal);
  set_address(d, 1, d.operand(1), ptx::Space::kShared);
  check_size(d, 2);
  d.out.control = true;
  d.out.execute = execute_copy;
}

void decode_tensormap(Decoder& d) {
  d.out.kind = InstructionClass::kAsync;
  if (d.take("replace")) return decode_replace(d);
  if (d.take("cp_fenceproxy")) return decode_copy(d);
  d.unknown("wants .replace or .cp_fenceproxy");
}

void execute_acquire(Warp& warp, const Instruction& i) {
  for_lanes(warp.active, [&](uint32_t lane) {
    const uint64_t address = address_of(warp, i, 0, lane);
    if (address % 128 != 0) fault_misaligned(warp, i, address, 128, lane, "the tensor map");
    auto& modified = warp.block->cluster->modified_maps;
    if (auto it = modified.find(address); it != modified.end()) it->second = true;
  });
}

const RegisterDecoders kRegistered({{"tensormap", decode_tensormap}});

}  // namespace

void decode_tensormap_acquire(Decoder& d) {
  set_address(d, 0, d.operand(0), ptx::Space::kNone);
  check_size(d, 1);
  d.out.execute = execute_acquire;
}

}  // namespace vgpu
