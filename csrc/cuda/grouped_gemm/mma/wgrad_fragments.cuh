// A warp's part of a weight gradient: sums[m, n] += left[row, m] * right[row, n], over the rows of a step in shared
// memory (see wgrad_rows.cuh), and the way of the sums back into shared memory in rows of 16-byte chunks.
//
// Both operands have the reduction as their outer dimension. For 16-bit data ldmatrix transposes. It cannot for 32-bit
// data: there a lane reads 4 neighbouring columns at once, so the fragments' rows and columns are those of the tile in
// another order, which only to_shared() has to know.
#pragma once

#include "cuda/common/numeric.cuh"
#include "cuda/common/unrolled.cuh"
#include "cuda/grouped_gemm/mma/wgrad_rows.cuh"
#include "cuda/ptx/ldmatrix.cuh"
#include "cuda/ptx/mma.cuh"
#include "cuda/ptx/store_shared.cuh"

namespace moe::cuda::mma {

// The warp's sums go through shared memory in slices of this many rows.
constexpr int kSliceRows = 32;

// kBlockM, kBlockN: columns of the tiles in shared memory.
template <class T, int kBlockM, int kBlockN, int kWarpM, int kWarpN>
class WarpProduct {
  static_assert(sizeof(T) == 2);
  static constexpr int kTilesM = kWarpM / 16, kTilesN = kWarpN / 8;
  static constexpr int kLeftRowBytes = kBlockM * 2, kRightRowBytes = kBlockN * 2;

 public:
  static constexpr int kPartRows = 16;

  struct Fragments {
    uint32_t left[kTilesM][4];
    uint32_t right[kTilesN / 2][4];
  };

  // left_tile, right_tile: shared addresses of the first stage's, multiples of 128.
  __device__ WarpProduct(uint32_t left_tile, uint32_t right_tile, int first_m, int first_n, int lane) {
    // The matrices of left are (rows 0-7, columns 0-7), (0-7, 8-15), (8-15, 0-7), (8-15, 8-15), in the order of the
    // registers of a; those of right are b0, b1 of 8 columns, then of the next 8.
    const int left_row = lane / 16 * 8 + lane % 8, left_chunk = first_m / 8 + lane / 8 % 2;
    const int right_row = lane / 8 % 2 * 8 + lane % 8, right_chunk = first_n / 8 + lane / 16;
    unrolled<kTilesM>([&](auto i) {
      left_[i] = left_tile + left_row * kLeftRowBytes + operand_chunk<T>(left_row, left_chunk + i * 2) * 16;
    });
    unrolled<kTilesN / 2>([&](auto j) {
      right_[j] = right_tile + right_row * kRightRowBytes + operand_chunk<T>(right_row, right_chunk + j * 2) * 16;
    });
  }

  // Goes on to the stage that begins `distance` bytes after this one.
  __device__ void advance(int distance) {
    unrolled<kTilesM>([&](auto i) { left_[i] += distance; });
    unrolled<kTilesN / 2>([&](auto j) { right_[j] += distance; });
  }

  template <int kPart>
  __device__ void load(Fragments& to) const {
    constexpr int kRow = kPart * kPartRows;
    unrolled<kTilesM>([&](auto i) { ptx::load_matrices_transposed<kRow * kLeftRowBytes>(to.left[i], left_[i]); });
    unrolled<kTilesN / 2>(
        [&](auto j) { ptx::load_matrices_transposed<kRow * kRightRowBytes>(to.right[j], right_[j]); });
  }

  __device__ void multiply(const Fragments& by) {
#pragma unroll
    for (int i = 0; i < kTilesM; ++i) {
#pragma unroll
      for (int j = 0; j < kTilesN; ++j) {
        ptx::multiply_add<T>(sums_[i][j], by.left[i], by.right[j / 2][j % 2 * 2], by.right[j / 2][j % 2 * 2 + 1]);
      }
    }
  }

  // Rows of a slice are so far apart that neither writing fragments nor reading rows meets a bank twice.
  template <class Out>
  static constexpr int kSliceRowBytes = kWarpN * sizeof(Out) + 8 * sizeof(Out);

  // Where a chunk of 16 bytes of a slice stands.
  template <class Out>
  static __device__ int slice_offset(int row, int chunk) {
    return row * kSliceRowBytes<Out> + chunk * 16;
  }

  // Slice kWhich of the sums, as rows of Out, to shared address `slice`.
  template <class Out, int kWhich>
  __device__ void to_shared(uint32_t slice, int lane) const {
    const uint32_t to = slice + lane / 4 * kSliceRowBytes<Out> + lane % 4 * 2 * sizeof(Out);
    unrolled<kSliceRows / 16>([&](auto i) {
      unrolled<kTilesN>([&](auto j) {
        unrolled<2>([&](auto half) {
          constexpr int kOffset = (i * 16 + half * 8) * kSliceRowBytes<Out> + j * 8 * sizeof(Out);
          const float (&sums)[4] = sums_[kWhich * (kSliceRows / 16) + i][j];
          if constexpr (sizeof(Out) == 4) {
            ptx::store_shared<kOffset>(to, sums[half * 2], sums[half * 2 + 1]);
          } else {
            ptx::store_shared<kOffset>(to, as_pair(sums[half * 2], sums[half * 2 + 1]));
          }
        });
      });
    });
  }

 private:
  static __device__ uint32_t as_pair(float x, float y) {
    const float both[2] = {x, y};
    const Vector<T, 2> pair = from_acc<T>(both);
    return reinterpret_cast<const uint32_t&>(pair);
  }

  float sums_[kTilesM][kTilesN][4] = {};
  uint32_t left_[kTilesM], right_[kTilesN / 2];  // shared addresses in the present stage
};

// tf32. In column 32 * h + 4 * g + i of the tile stands fragment row g + 8 * h of product i of left; in column
// 32 * h + 4 * g + i column g of product 4 * h + i of right.
template <int kBlockM, int kBlockN>
class WarpProduct<float, kBlockM, kBlockN, 64, 64> {
  static constexpr int kTilesM = 4, kTilesN = 8;
  static constexpr int kLeftRowBytes = kBlockM * 4, kRightRowBytes = kBlockN * 4;

 public:
  static constexpr int kPartRows = 8;

  struct Fragments {
    Vector<float, 4> left[2][2];  // [rows t, t + 4][h]
    Vector<float, 4> right[2][2];
  };

  __device__ WarpProduct(uint32_t left_tile, uint32_t right_tile, int first_m, int first_n, int lane) {
    const int row = lane % 4, chunk = lane / 4;
    left_ = left_tile + row * kLeftRowBytes + operand_chunk<float>(row, first_m / 4 + chunk) * 16;
    right_ = right_tile + row * kRightRowBytes + operand_chunk<float>(row, first_n / 4 + chunk) * 16;
  }

  __device__ void advance(int distance) { left_ += distance, right_ += distance; }

  template <int kPart>
  __device__ void load(Fragments& to) const {
#pragma unroll
    for (int late = 0; late < 2; ++late) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int row = kPart * kPartRows + late * 4;
        to.left[late][h] = load_chunk(left_ + row * kLeftRowBytes + h * 128);
        to.right[late][h] = load_chunk(right_ + row * kRightRowBytes + h * 128);
      }
    }
  }

  __device__ void multiply(const Fragments& by) {
    uint32_t right[kTilesN][2];
#pragma unroll
    for (int j = 0; j < kTilesN; ++j) {
#pragma unroll
      for (int late = 0; late < 2; ++late) right[j][late] = rounded(by.right[late][j / 4].values[j % 4]);
    }
#pragma unroll
    for (int i = 0; i < kTilesM; ++i) {
      const uint32_t left[4] = {rounded(by.left[0][0].values[i]), rounded(by.left[0][1].values[i]),
                                rounded(by.left[1][0].values[i]), rounded(by.left[1][1].values[i])};
#pragma unroll
      for (int j = 0; j < kTilesN; ++j) ptx::multiply_add<float>(sums_[i][j], left, right[j][0], right[j][1]);
    }
  }

  template <class Out>
  static constexpr int kSliceRowBytes = 256;

  // Swizzled: fragments are written 4 rows apart, which no distance between rows keeps out of each other's banks.
  template <class Out>
  static __device__ int slice_offset(int row, int chunk) {
    return row * 256 + (chunk ^ ((row & 3) << 1 | (row >> 2 & 1))) * 16;
  }

  template <class Out, int kWhich>
  __device__ void to_shared(uint32_t slice, int lane) const {
    static_assert(std::is_same_v<Out, float>);
#pragma unroll
    for (int i = 0; i < kTilesM; ++i) {
      const int row = lane / 4 * 4 + i;
#pragma unroll
      for (int h = 0; h < 2; ++h) {
#pragma unroll
        for (int odd = 0; odd < 2; ++odd) {
          constexpr int kFirst = kWhich * 2;
          const float (&j)[kTilesN][4] = sums_[i];
          ptx::store_shared(slice + slice_offset<float>(row, h * 8 + lane % 4 * 2 + odd), j[h * 4][kFirst + odd],
                            j[h * 4 + 1][kFirst + odd], j[h * 4 + 2][kFirst + odd], j[h * 4 + 3][kFirst + odd]);
        }
      }
    }
  }

 private:
  static __device__ Vector<float, 4> load_chunk(uint32_t address) {
    return moe::cuda::load<4>(static_cast<const float*>(__cvta_shared_to_generic(address)));
  }

  static __device__ uint32_t rounded(float value) { return ptx::round_to_tf32(__float_as_uint(value)); }

  float sums_[kTilesM][kTilesN][4] = {};
  uint32_t left_, right_;  // shared addresses in the present stage
};

}  // namespace moe::cuda::mma
