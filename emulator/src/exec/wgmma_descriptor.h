// Matrix descriptors of wgmma: where in shared memory each 16 bytes of an operand are.
//
// Operands consist of pieces of 16 bytes. K-major operands have their pieces along k: two for each row of A or column
// of B ("line"). MN-major operands (16-bit elements, transposed) have them across 8 lines: one for each k and 8 lines.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace vgpu {

struct MatrixDescriptor {
  uint32_t start = 0;           // bytes, as the other offsets
  uint32_t leading_offset = 0;  // between the two pieces of a line where nothing is swizzled, or from one swizzled
                                // block of lines to the next (MN-major); between k and k + 8 (MN-major, not swizzled)
  uint32_t stride_offset = 0;   // between lines l and l + 8 (K-major), between k and k + 8 (MN-major)
                                // or between lines l and l + 8 (MN-major, not swizzled)
  uint32_t span = 16;           // bytes of a swizzled row: 16 (none), 32, 64, 128
  uint32_t base_offset = 0;     // row of the swizzle pattern at which the operand's pattern begins
};

// Empty when the descriptor is well formed; otherwise says what is wrong.
std::string parse_descriptor(uint64_t bits, MatrixDescriptor* out);

// The place of a 16-byte piece, after swizzling, in the block's shared memory.
inline uint32_t swizzled(const MatrixDescriptor& d, uint32_t address) {
  const uint32_t rows = d.span / 16 - 1;
  return address ^ ((((address >> 7) - d.base_offset) & rows) << 4);
}
inline uint32_t k_major_piece(const MatrixDescriptor& d, uint32_t line, uint32_t piece) {
  const uint32_t along = d.span == 16 ? d.leading_offset : 16;
  return swizzled(d, d.start + line / 8 * d.stride_offset + line % 8 * d.span + piece * along);
}
// `group`: lines 8 · group to 8 · group + 7.
inline uint32_t mn_major_piece(const MatrixDescriptor& d, uint32_t group, uint32_t k) {
  if (d.span == 16) return d.start + group * d.stride_offset + k % 8 * 16 + k / 8 * d.leading_offset;
  const uint32_t pieces = d.span / 16;
  return swizzled(
      d, d.start + group / pieces * d.leading_offset + group % pieces * 16 + k % 8 * d.span + k / 8 * d.stride_offset);
}

// Parts of shared memory that an operand of so many lines occupies, whole swizzled rows, adjacent ones joined.
struct SharedRange {
  uint32_t begin, end;
};
std::vector<SharedRange> occupied(const MatrixDescriptor& d, bool k_major, uint32_t first_line, uint32_t lines);

}  // namespace vgpu
