// A box of a tensor, as tensor copies see it: rows of global memory, and where swizzling puts them in shared memory.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/block.h"
#include "runtime/tensor_map.h"

namespace vgpu {

// The innermost run of elements at one combination of the outer coordinates. Elements [first, last) lie in the tensor.
struct BoxRow {
  uint32_t number = 0;   // in the box
  uint64_t address = 0;  // in global memory, of element `first`
  uint32_t first = 0, last = 0;
};

struct TensorBox {
  TensorMap map;
  std::array<int32_t, TensorMap::kMaxRank> coordinates{};

  uint32_t element_bytes() const { return element_bits(map.type) / 8; }
  uint32_t row_bytes() const { return map.box[0] * element_bytes(); }
  // All rows, the second dimension fastest; those outside the tensor have first == last.
  std::vector<BoxRow> rows() const;
};

// The map at a generic address: of a parameter, or in global memory. Faults when it is none or cannot be used.
TensorMap tensor_map_at(Warp& warp, const Instruction& i, uint64_t address, uint32_t lane);

// Where the 16 bytes at this shared address go.
uint32_t swizzled(uint32_t address, TensorMapSwizzle swizzle);

}  // namespace vgpu
