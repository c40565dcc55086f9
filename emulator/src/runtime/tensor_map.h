// Tensor maps (CUtensorMap): what the tensor copies of Hopper and later read their geometry from.
//
// The layout is this emulator's own: a host encodes through cuTensorMapEncodeTiled, kernels treat it as opaque.
#pragma once

#include <array>
#include <cstdint>
#include <string>

namespace vgpu {

// Numbered like CUtensorMapDataType.
enum class TensorMapType : uint8_t {
  kU8,
  kU16,
  kU32,
  kS32,
  kU64,
  kS64,
  kF16,
  kF32,
  kF64,
  kBf16,
  kF32Ftz,
  kTf32,
  kTf32Ftz,
  kU4Align8,
  kU4Align16,
  kU6Align16,
};

// Numbered like CUtensorMapInterleave.
enum class TensorMapInterleave : uint8_t { kNone, k16B, k32B };

// Numbered like CUtensorMapSwizzle.
enum class TensorMapSwizzle : uint8_t { kNone, k32B, k64B, k128B, k128BAtom32B, k128BAtom32BFlip8B, k128BAtom64B };

// Of one element in global memory; 4 and 6 for the packed types.
uint32_t element_bits(TensorMapType type);
bool is_float(TensorMapType type);
const char* name(TensorMapType type);
// Bytes within which a swizzle moves data: 32, 64 or 128; 0 without a swizzle.
uint32_t swizzle_span(TensorMapSwizzle swizzle);

// Dimension 0 is the innermost.
struct alignas(64) TensorMap {
  static constexpr uint32_t kMagic = 0x50414d54;
  static constexpr uint32_t kMaxRank = 5;

  uint32_t magic = 0;
  TensorMapType type = TensorMapType::kU8;
  uint8_t rank = 0;
  TensorMapInterleave interleave = TensorMapInterleave::kNone;
  TensorMapSwizzle swizzle = TensorMapSwizzle::kNone;
  uint64_t address = 0;
  std::array<uint32_t, kMaxRank> dims_minus_one{};  // up to 2^32
  std::array<uint16_t, kMaxRank> box{};             // elements
  std::array<uint8_t, kMaxRank> element_strides{};
  uint8_t fill_nan = 0;  // out of bounds: 0 zeros, 1 NaN
  uint8_t l2_promotion = 0;
  uint8_t unused[3] = {};
  std::array<uint64_t, kMaxRank - 1> strides{};  // bytes, of dimensions 1 and up
  uint8_t reserved[40] = {};

  uint64_t dim(uint32_t i) const { return uint64_t{dims_minus_one[i]} + 1; }
  // Bytes between neighbours in dimension i.
  uint64_t stride(uint32_t i) const { return i == 0 ? element_bits(type) / 8 : strides[i - 1]; }
  // Elements that a copy takes in dimension i.
  uint32_t count(uint32_t i) const { return (box[i] + element_strides[i] - 1u) / element_strides[i]; }
  // Bytes that a copy puts into shared memory, and that it adds to an mbarrier's transactions.
  uint32_t box_bytes() const;
};
static_assert(sizeof(TensorMap) == 128 && alignof(TensorMap) == 64);

// As the driver takes them. Codes are CUresult's: 0 success, 1 invalid value. `map` is untouched on failure.
int encode_tiled(void* map, uint32_t type, uint32_t rank, uint64_t address, const uint64_t* dims,
                 const uint64_t* strides, const uint32_t* box, const uint32_t* element_strides, uint32_t interleave,
                 uint32_t swizzle, uint32_t l2_promotion, uint32_t fill);
// cuTensorMapReplaceAddress.
int replace_address(void* map, uint64_t address);
// Why the last of the two failed on this thread.
const std::string& last_tensor_map_error();

// What keeps a kernel from using the map, in one sentence; empty when nothing does.
std::string problem(const TensorMap& map);

// The fields that tensormap.replace sets, with the values that PTX gives them. Each returns what is wrong with the
// value, empty when nothing is; rules that hold between fields are left to problem(), since fields change one by one.
std::string replace_global_address(TensorMap& map, uint64_t address);
std::string replace_rank(TensorMap& map, uint32_t rank_minus_one);
std::string replace_box_dim(TensorMap& map, uint32_t dimension, uint32_t elements);
std::string replace_global_dim(TensorMap& map, uint32_t dimension, uint32_t elements);
// `dimension` counts strides: 0 is the stride of dimension 1.
std::string replace_global_stride(TensorMap& map, uint32_t dimension, uint64_t bytes);
std::string replace_element_stride(TensorMap& map, uint32_t dimension, uint32_t stride);
std::string replace_elemtype(TensorMap& map, uint32_t value);
std::string replace_interleave_layout(TensorMap& map, uint32_t value);
std::string replace_swizzle_mode(TensorMap& map, uint32_t value);
std::string replace_swizzle_atomicity(TensorMap& map, uint32_t value);
std::string replace_fill_mode(TensorMap& map, uint32_t value);

}  // namespace vgpu
