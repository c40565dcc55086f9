// Shared memory to the registers of mma.sync, for a warp's part of a tile and one slice of k.
#pragma once

#include "cuda/grouped_gemm/mma/shared_tiles.cuh"
#include "cuda/ptx/ldmatrix.cuh"
#include "cuda/ptx/mma.cuh"

namespace moe::cuda::mma {

// The left operand: kCount matrices of 16 rows.
template <int kRows, int kCount>
struct LeftFragments {
  uint32_t values[kCount][4];

  // A thread's part of the address; row is the warp's first, a multiple of 16.
  static __device__ uint32_t offset(int row, int lane) {
    return KMajorTile<kRows>::offset(row + lane % 16, lane / 16);
  }

  __device__ void load(uint32_t address, int slice) {
#pragma unroll
    for (int i = 0; i < kCount; ++i)
      ptx::load_matrices(values[i], address + slice * KMajorTile<kRows>::kSlabBytes + i * 16 * kSliceBytes);
  }
};

// The right operand: kCount pairs of 8 columns; a pair has the registers of its first 8 columns, then those of the next.
template <class T, int kColumns, int kCount, bool kKMajor>
struct RightFragments;

template <class T, int kColumns, int kCount>
struct RightFragments<T, kColumns, kCount, true> {
  using Tile = KMajorTile<kColumns>;
  uint32_t values[kCount][4];

  static __device__ uint32_t offset(int column, int lane) {
    return Tile::offset(column + lane / 16 * 8 + lane % 8, lane / 8 % 2);
  }

  __device__ void load(uint32_t address, int slice) {
#pragma unroll
    for (int i = 0; i < kCount; ++i)
      ptx::load_matrices(values[i], address + slice * Tile::kSlabBytes + i * 16 * kSliceBytes);
  }
};

template <class T, int kColumns, int kCount>
struct RightFragments<T, kColumns, kCount, false> {
  using Tile = NMajorTile<T, kColumns>;
  uint32_t values[kCount][4];

  static __device__ uint32_t offset(int column, int lane) {
    return Tile::offset(lane % 16, lane / 16) + column * static_cast<int>(sizeof(T));
  }

  __device__ void load(uint32_t address, int slice) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      ptx::load_matrices_transposed(values[i], address + slice * 16 * Tile::kRowBytes + i * 16 * sizeof(T));
    }
  }
};

// ldmatrix transposes halves, not words: these are loaded one by one.
template <int kColumns, int kCount>
struct RightFragments<float, kColumns, kCount, false> {
  using Tile = NMajorTile<float, kColumns>;
  uint32_t values[kCount][4];

  static __device__ uint32_t offset(int column, int lane) {
    return lane % 4 * Tile::kRowBytes + (column + lane / 4) * static_cast<int>(sizeof(float));
  }

  __device__ void load(uint32_t address, int slice) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int row = slice * 8 + j % 2 * 4, column = i * 16 + j / 2 * 8;
        values[i][j] = ptx::load_word(address + row * Tile::kRowBytes + column * sizeof(float));
      }
    }
  }
};

template <int kCount>
__device__ void round_to_tf32(uint32_t (&values)[kCount][4]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) values[i][j] = ptx::round_to_tf32(values[i][j]);
  }
}

}  // namespace moe::cuda::mma
