// How operands lie in shared memory, what describes them to wgmma, and rows that are not loaded by TMA.
//
// An operand consists of boxes of 64 rows of 128 bytes, one after the other, each row's 16-byte chunks swizzled: chunk
// c of row r stands at chunk c ^ (r % 8), as TMA writes it. Rows are either rows or columns of the product with 64
// elements of the reduction, or elements of the reduction with 64 rows or columns (transposed).
#pragma once

#include <cstdint>

#include "cuda/grouped_gemm/product.h"
#include "cuda/grouped_gemm/wgmma/tensor_map.h"

namespace moe::cuda::wgmma {

constexpr int kElementBytes = 2;
constexpr int kRowBytes = kBox * kElementBytes;
constexpr int kChunkElements = 8, kChunks = kBox / kChunkElements;
constexpr int kPatternBytes = 8 * kRowBytes;  // the swizzle repeats; boxes begin at multiples of it
constexpr int kProducts = kBox / 16;          // of 16 elements of the reduction, in a box

__device__ inline uint32_t chunk_offset(int row, int chunk) { return row * kRowBytes + (chunk ^ row % 8) * 16; }

// Bytes of the chunk from element `first` of a row of `size` elements: 16, fewer at its end, 0 past it.
__device__ inline int32_t bytes_of_chunk(int32_t first, int32_t size) {
  return min(max(size - first, 0), kChunkElements) * kElementBytes;
}

// The operand whose first box is at this address of shared memory.
template <bool kTransposed>
__device__ inline uint64_t describe(uint32_t address) {
  constexpr uint64_t kSwizzled128 = uint64_t{1} << 62;
  constexpr uint64_t kNextPattern = uint64_t{kPatternBytes >> 4} << 32;
  // From a box of 64 rows or columns to the next; not used where elements lie along the reduction.
  constexpr uint64_t kNextBox = uint64_t{kTransposed ? kBoxBytes >> 4 : 1} << 16;
  return kSwizzled128 | kNextPattern | kNextBox | (address & 0x3ffff) >> 4;
}

// What the next 16 elements of the reduction add to a description.
template <bool kTransposed>
constexpr uint64_t kNextProduct = (kTransposed ? 16 * kRowBytes : 16 * kElementBytes) >> 4;

// 16-byte copies can read it.
inline bool fits(const RowOperand& rows) {
  return rows.k_stride == 1 && rows.stride % kChunkElements == 0 && reinterpret_cast<uintptr_t>(rows.data) % 16 == 0;
}

// Where sorted row `row` stands in the operand, or -1.
__device__ inline int32_t find_row(const RowOperand& rows, int32_t row) {
  if (rows.gather) {
    row = __ldg(rows.gather + row);
    if (row < 0) return -1;
    row = rows.divisor(row);
  }
  return row < rows.num_rows ? row : -1;
}

}  // namespace moe::cuda::wgmma
