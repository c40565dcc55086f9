// Shared memory to the registers of mma.sync, for a warp's part of a tile and one slice of k.
#pragma once

#include "cuda/common/unrolled.cuh"
#include "cuda/grouped_gemm/mma/shared_tiles.cuh"
#include "cuda/ptx/ldmatrix.cuh"
#include "cuda/ptx/mma.cuh"

namespace moe::cuda::mma {

// The left operand: kCount matrices of 16 rows.
template <int kRows, int kCount>
struct LeftFragments {
  uint32_t values[kCount][4];

  // A thread's part of the address; row is the warp's first, a multiple of 16.
  static __device__ uint32_t offset(int row, int lane) { return KMajorTile<kRows>::offset(row + lane % 16, lane / 16); }

  template <int kSlice>
  __device__ void load(uint32_t address) {
    unrolled<kCount>([&](auto i) {
      ptx::load_matrices<kSlice * KMajorTile<kRows>::kSlabBytes + i * 16 * kSliceBytes>(values[i], address);
    });
  }
};

// The right operand: kCount pairs of 8 columns; a pair has the registers of its first 8 columns, then those of the
// next.
template <class T, int kColumns, int kCount, bool kKMajor>
struct RightFragments;

template <class T, int kColumns, int kCount>
struct RightFragments<T, kColumns, kCount, true> {
  using Tile = KMajorTile<kColumns>;
  uint32_t values[kCount][4];

  static __device__ uint32_t offset(int column, int lane) {
    return Tile::offset(column + lane / 16 * 8 + lane % 8, lane / 8 % 2);
  }

  template <int kSlice>
  __device__ void load(uint32_t address) {
    unrolled<kCount>(
        [&](auto i) { ptx::load_matrices<kSlice * Tile::kSlabBytes + i * 16 * kSliceBytes>(values[i], address); });
  }
};

template <class T, int kColumns, int kCount>
struct RightFragments<T, kColumns, kCount, false> {
  using Tile = NMajorTile<T, kColumns>;
  uint32_t values[kCount][4];

  static __device__ uint32_t offset(int column, int lane) {
    return Tile::offset(lane % 16, lane / 16) + column * static_cast<int>(sizeof(T));
  }

  template <int kSlice>
  __device__ void load(uint32_t address) {
    unrolled<kCount>([&](auto i) {
      ptx::load_matrices_transposed<kSlice * 16 * Tile::kRowBytes + i * 16 * sizeof(T)>(values[i], address);
    });
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

  template <int kSlice>
  __device__ void load(uint32_t address) {
    unrolled<kCount>([&](auto i) {
      unrolled<4>([&](auto j) {
        constexpr int kRow = kSlice * 8 + j % 2 * 4, kColumn = i * 16 + j / 2 * 8;
        values[i][j] = ptx::load_word<kRow * Tile::kRowBytes + kColumn* static_cast<int>(sizeof(float))>(address);
      });
    });
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
