#include "runtime/tensor_map.h"

#include <cstdio>
#include <cstring>
#include <iterator>

namespace vgpu {
namespace {

constexpr int kSuccess = 0;
constexpr int kInvalidValue = 1;
constexpr uint64_t kMaxDim = 1ull << 32;
constexpr uint64_t kMaxStride = 1ull << 40;

thread_local std::string last_error;

struct TypeFacts {
  const char* name;
  uint32_t bits;
  bool is_float;
};

constexpr TypeFacts kTypes[] = {
    {"u8", 8, false},       {"u16", 16, false},         {"u32", 32, false},          {"s32", 32, false},
    {"u64", 64, false},     {"s64", 64, false},         {"f16", 16, true},           {"f32", 32, true},
    {"f64", 64, true},      {"bf16", 16, true},         {"f32.ftz", 32, true},       {"tf32", 32, true},
    {"tf32.ftz", 32, true}, {"u4 (align 8)", 4, false}, {"u4 (align 16)", 4, false}, {"u6 (align 16)", 6, false},
};
constexpr uint32_t kTypeCount = std::size(kTypes);

bool padded(TensorMapType type) { return type == TensorMapType::kU4Align16 || type == TensorMapType::kU6Align16; }

std::string number(uint64_t value) { return std::to_string(value); }

std::string hexadecimal(uint64_t value) {
  char text[32];
  std::snprintf(text, sizeof text, "0x%llx", static_cast<unsigned long long>(value));
  return text;
}

std::string wrong_address(const TensorMap& map) {
  const uint64_t align = map.interleave == TensorMapInterleave::k32B || padded(map.type) ? 32 : 16;
  if (map.address % align != 0)
    return "global address " + hexadecimal(map.address) + " is not aligned to " + number(align) + " bytes";
  return "";
}

std::string wrong_dims(const TensorMap& map) {
  const uint64_t inner = map.dim(0);
  if (padded(map.type) && inner % 128 != 0)
    return "dimension 0 is " + number(inner) + ", want a multiple of 128 for type " + name(map.type);
  if (map.type == TensorMapType::kU4Align8 && inner % 2 != 0)
    return "dimension 0 is " + number(inner) + ", want an even number for type " + name(map.type);
  return "";
}

std::string wrong_strides(const TensorMap& map) {
  const uint64_t unit = map.interleave == TensorMapInterleave::k32B || padded(map.type) ? 32 : 16;
  for (uint32_t i = 0; i + 1 < map.rank; ++i) {
    const std::string what = "stride " + number(i) + " is " + number(map.strides[i]) + " bytes, want ";
    if (map.strides[i] % unit != 0) return what + "a multiple of " + number(unit);
    if (map.strides[i] >= kMaxStride) return what + "less than 2^40";
  }
  return "";
}

std::string wrong_box(const TensorMap& map) {
  for (uint32_t i = 0; i < map.rank; ++i) {
    if (map.box[i] < 1 || map.box[i] > 256)
      return "box " + number(i) + " is " + number(map.box[i]) + " elements, want 1 to 256";
    if (map.element_strides[i] < 1 || map.element_strides[i] > 8)
      return "element stride " + number(i) + " is " + number(map.element_strides[i]) + ", want 1 to 8";
  }
  if (padded(map.type) && map.box[0] != 128)
    return "box 0 is " + number(map.box[0]) + " elements, want 128 for type " + name(map.type);
  if (map.interleave != TensorMapInterleave::kNone) return "";
  const uint32_t bits = map.box[0] * element_bits(map.type);
  const std::string inner = "the inner box of " + number(map.box[0]) + " elements has " + number(bits / 8) + " bytes, ";
  if (bits % 128 != 0) return inner + "want a multiple of 16";
  // A padded type fills its gaps in shared memory, so that 128 elements span 128 bytes.
  const uint32_t span = swizzle_span(map.swizzle);
  if (span != 0 && bits / 8 > span && !padded(map.type))
    return inner + "more than the swizzle's span of " + number(span);
  return "";
}

std::string wrong_combination(const TensorMap& map) {
  if (map.interleave != TensorMapInterleave::kNone && map.rank < 3)
    return "rank is " + number(map.rank) + ", want at least 3 with an interleaved layout";
  if (map.interleave == TensorMapInterleave::k32B && map.swizzle != TensorMapSwizzle::k32B)
    return "interleave 32B wants swizzle 32B";
  if (map.type == TensorMapType::kU6Align16 && map.interleave != TensorMapInterleave::kNone)
    return std::string("type ") + name(map.type) + " wants no interleave";
  if (padded(map.type) && (map.swizzle == TensorMapSwizzle::k32B || map.swizzle == TensorMapSwizzle::k64B ||
                           map.swizzle == TensorMapSwizzle::k128BAtom32BFlip8B ||
                           (map.swizzle == TensorMapSwizzle::k128BAtom64B && map.type == TensorMapType::kU4Align16)))
    return std::string("type ") + name(map.type) + " does not go with this swizzle";
  if (map.fill_nan != 0 && !is_float(map.type))
    return std::string("a fill with NaN wants a floating-point type, not ") + name(map.type);
  return "";
}

std::string wrong_dimension(const TensorMap&, uint32_t dimension, uint32_t limit) {
  if (dimension >= limit) return "dimension " + number(dimension) + " does not exist, want less than " + number(limit);
  return "";
}

int refuse(std::string reason) {
  last_error = std::move(reason);
  return kInvalidValue;
}

}  // namespace

uint32_t element_bits(TensorMapType type) { return kTypes[static_cast<int>(type)].bits; }
bool is_float(TensorMapType type) { return kTypes[static_cast<int>(type)].is_float; }
const char* name(TensorMapType type) { return kTypes[static_cast<int>(type)].name; }

uint32_t swizzle_span(TensorMapSwizzle swizzle) {
  switch (swizzle) {
    case TensorMapSwizzle::kNone:
      return 0;
    case TensorMapSwizzle::k32B:
      return 32;
    case TensorMapSwizzle::k64B:
      return 64;
    default:
      return 128;
  }
}

uint32_t TensorMap::box_bytes() const {
  uint64_t elements = 1;
  for (uint32_t i = 0; i < rank; ++i)
    elements *= i == 0 && interleave == TensorMapInterleave::kNone ? box[0] : count(i);
  return static_cast<uint32_t>(elements * (padded(type) ? 8 : element_bits(type)) / 8);
}

std::string problem(const TensorMap& map) {
  if (map.magic != TensorMap::kMagic) return "these 128 bytes are no tensor map";
  if (map.rank < 1 || map.rank > TensorMap::kMaxRank) return "rank is " + number(map.rank) + ", want 1 to 5";
  for (auto check : {wrong_combination, wrong_address, wrong_dims, wrong_strides, wrong_box})
    if (std::string reason = check(map); !reason.empty()) return reason;
  return "";
}

int encode_tiled(void* out, uint32_t type, uint32_t rank, uint64_t address, const uint64_t* dims,
                 const uint64_t* strides, const uint32_t* box, const uint32_t* element_strides, uint32_t interleave,
                 uint32_t swizzle, uint32_t l2_promotion, uint32_t fill) {
  last_error.clear();
  if (out == nullptr) return refuse("the descriptor's address is null");
  if (reinterpret_cast<uint64_t>(out) % 64 != 0) return refuse("the descriptor is not aligned to 64 bytes");
  if (type >= kTypeCount) return refuse("data type " + number(type) + " does not exist");
  if (rank < 1 || rank > TensorMap::kMaxRank) return refuse("rank is " + number(rank) + ", want 1 to 5");
  if (interleave > static_cast<uint32_t>(TensorMapInterleave::k32B))
    return refuse("interleave " + number(interleave) + " does not exist");
  if (swizzle > static_cast<uint32_t>(TensorMapSwizzle::k128BAtom64B))
    return refuse("swizzle " + number(swizzle) + " does not exist");
  if (l2_promotion > 3) return refuse("L2 promotion " + number(l2_promotion) + " does not exist");
  if (fill > 1) return refuse("fill " + number(fill) + " does not exist");
  if (address == 0) return refuse("the global address is null");
  if (dims == nullptr || box == nullptr || element_strides == nullptr || (rank > 1 && strides == nullptr))
    return refuse("an array is null");

  TensorMap map;
  map.magic = TensorMap::kMagic;
  map.type = static_cast<TensorMapType>(type);
  map.rank = static_cast<uint8_t>(rank);
  map.interleave = static_cast<TensorMapInterleave>(interleave);
  map.swizzle = static_cast<TensorMapSwizzle>(swizzle);
  map.address = address;
  map.fill_nan = static_cast<uint8_t>(fill);
  map.l2_promotion = static_cast<uint8_t>(l2_promotion);
  for (uint32_t i = 0; i < rank; ++i) {
    if (dims[i] < 1 || dims[i] > kMaxDim)
      return refuse("dimension " + number(i) + " is " + number(dims[i]) + ", want 1 to 2^32");
    if (box[i] > 256 || box[i] == 0)
      return refuse("box " + number(i) + " is " + number(box[i]) + " elements, want 1 to 256");
    // TMA has no stride in dimension 0 without an interleave: the driver ignores the number.
    const bool ignored = i == 0 && interleave == 0;
    if (!ignored && (element_strides[i] < 1 || element_strides[i] > 8))
      return refuse("element stride " + number(i) + " is " + number(element_strides[i]) + ", want 1 to 8");
    map.dims_minus_one[i] = static_cast<uint32_t>(dims[i] - 1);
    map.box[i] = static_cast<uint16_t>(box[i]);
    map.element_strides[i] = ignored ? 1 : static_cast<uint8_t>(element_strides[i]);
    if (i > 0) map.strides[i - 1] = strides[i - 1];
  }
  if (std::string reason = problem(map); !reason.empty()) return refuse(std::move(reason));
  std::memcpy(out, &map, sizeof map);
  return kSuccess;
}

int replace_address(void* out, uint64_t address) {
  last_error.clear();
  if (out == nullptr || reinterpret_cast<uint64_t>(out) % 64 != 0)
    return refuse("the descriptor is null or not aligned to 64 bytes");
  TensorMap map;
  std::memcpy(&map, out, sizeof map);
  map.address = address;
  if (std::string reason = problem(map); !reason.empty()) return refuse(std::move(reason));
  std::memcpy(out, &map, sizeof map);
  return kSuccess;
}

const std::string& last_tensor_map_error() { return last_error; }

std::string replace_global_address(TensorMap& map, uint64_t address) {
  map.address = address;
  return wrong_address(map);
}

std::string replace_rank(TensorMap& map, uint32_t rank_minus_one) {
  if (rank_minus_one >= TensorMap::kMaxRank)
    return "rank field is " + number(rank_minus_one) + ", want 0 to 4 (one less than the rank)";
  map.rank = static_cast<uint8_t>(rank_minus_one + 1);
  for (uint32_t i = 0; i < map.rank; ++i) {
    // Fields of a new dimension are to be replaced too; until then they hold what a driver would put there.
    if (map.box[i] == 0) map.box[i] = 1;
    if (map.element_strides[i] == 0) map.element_strides[i] = 1;
  }
  return "";
}

std::string replace_box_dim(TensorMap& map, uint32_t dimension, uint32_t elements) {
  if (std::string reason = wrong_dimension(map, dimension, TensorMap::kMaxRank); !reason.empty()) return reason;
  if (elements < 1 || elements > 256) return "box is " + number(elements) + " elements, want 1 to 256";
  map.box[dimension] = static_cast<uint16_t>(elements);
  return "";
}

std::string replace_global_dim(TensorMap& map, uint32_t dimension, uint32_t elements) {
  if (std::string reason = wrong_dimension(map, dimension, TensorMap::kMaxRank); !reason.empty()) return reason;
  if (elements == 0) return "dimension " + number(dimension) + " is replaced by 0, which would mean 2^32";
  map.dims_minus_one[dimension] = elements - 1;
  return "";
}

std::string replace_global_stride(TensorMap& map, uint32_t dimension, uint64_t bytes) {
  if (std::string reason = wrong_dimension(map, dimension, TensorMap::kMaxRank - 1); !reason.empty()) return reason;
  if (bytes % 16 != 0 || bytes >= kMaxStride)
    return "stride is " + number(bytes) + " bytes, want a multiple of 16 that is less than 2^40";
  map.strides[dimension] = bytes;
  return "";
}

std::string replace_element_stride(TensorMap& map, uint32_t dimension, uint32_t stride) {
  if (std::string reason = wrong_dimension(map, dimension, TensorMap::kMaxRank); !reason.empty()) return reason;
  if (stride < 1 || stride > 8) return "element stride is " + number(stride) + ", want 1 to 8";
  map.element_strides[dimension] = static_cast<uint8_t>(stride);
  return "";
}

std::string replace_elemtype(TensorMap& map, uint32_t value) {
  // PTX numbers the types otherwise than the driver does.
  using enum TensorMapType;
  constexpr TensorMapType kPtx[] = {kU8,     kU16, kU32,  kS32,  kU64,     kS64,      kF16,       kF32,
                                    kF32Ftz, kF64, kBf16, kTf32, kTf32Ftz, kU4Align8, kU4Align16, kU6Align16};
  if (value >= std::size(kPtx)) return "element type " + number(value) + " does not exist";
  map.type = kPtx[value];
  return "";
}

std::string replace_interleave_layout(TensorMap& map, uint32_t value) {
  if (value > 2) return "interleave layout " + number(value) + " does not exist";
  map.interleave = static_cast<TensorMapInterleave>(value);
  return "";
}

std::string replace_swizzle_mode(TensorMap& map, uint32_t value) {
  if (value == 4) return "the swizzle of 96 bytes is not known to the emulator";
  if (value > 4) return "swizzle mode " + number(value) + " does not exist";
  map.swizzle = static_cast<TensorMapSwizzle>(value);
  return "";
}

std::string replace_swizzle_atomicity(TensorMap& map, uint32_t value) {
  if (value > 3) return "swizzle atomicity " + number(value) + " does not exist";
  if (swizzle_span(map.swizzle) != 128) return value == 0 ? "" : "only the swizzle of 128 bytes has a choice of atoms";
  map.swizzle = static_cast<TensorMapSwizzle>(static_cast<uint32_t>(TensorMapSwizzle::k128B) + value);
  return "";
}

std::string replace_fill_mode(TensorMap& map, uint32_t value) {
  if (value > 1) return "fill mode " + number(value) + " does not exist";
  map.fill_nan = static_cast<uint8_t>(value);
  return "";
}

}  // namespace vgpu
