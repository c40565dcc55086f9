// A tile of product[r, n] = sum over k of rows[r, k] * weight[expert of r][n, k] by mma.sync, on every chip from sm_80.
//
// A block multiplies kBlockM sorted rows of one expert by kBlockN columns of its weight; rows are read where they lie,
// through an index or not. Shared memory is a ring of kStages steps of k, filled by cp.async. A warp has a part of the
// tile in registers, as 16x8 sums, and the fragments of the next slice of k on their way while it multiplies. The
// finished tile goes through shared memory to the epilogue (epilogue.cuh), in slices of rows.
//
// Each output is one chain of sums in float32, k ascending in steps of 16 (8 with tf32), the same for every tile size.
// Where k is no multiple of the step, the first step is filled up with zeros.
//
// In the loop: one barrier a step; a stage is filled again as soon as all have read it.
#pragma once

#include "cuda/grouped_gemm/epilogue.cuh"
#include "cuda/grouped_gemm/mma/copies.cuh"
#include "cuda/grouped_gemm/mma/fragments.cuh"
#include "cuda/grouped_gemm/product.h"
#include "cuda/permute/decode.cuh"
#include "cuda/ptx/store_shared.cuh"

namespace moe::cuda::mma {

template <int kBlockM_, int kBlockN_, int kWarpsM_, int kWarpsN_, int kStages_, int kBlocks_>
struct Shape {
  static constexpr int kBlockM = kBlockM_, kBlockN = kBlockN_, kWarpsM = kWarpsM_, kWarpsN = kWarpsN_;
  static constexpr int kStages = kStages_;
  static constexpr int kBlocks = kBlocks_;  // that registers should suffice for on a multiprocessor
  static constexpr int kThreads = 32 * kWarpsM * kWarpsN;
  static constexpr int kWarpRows = kBlockM / kWarpsM, kWarpColumns = kBlockN / kWarpsN;
  static constexpr int kSharedBytes = mma_rows_shared_bytes(kBlockM, kBlockN, kStages);
  // Sums in shared memory. The stride keeps rows of a fragment 8 banks apart.
  static constexpr int kSliceRows = kBlockM < 64 ? kBlockM : 64, kSumsStride = kBlockN + 8;
  static_assert(kSliceRows % kWarpRows == 0 && kSliceRows * kSumsStride * 4 <= kSharedBytes);
};

template <class T, class Shape, bool kKMajor>
struct MainLoop {
  using RowCopy = KMajorCopy<T, Shape::kBlockM, Shape::kThreads>;
  using WeightCopy = std::conditional_t<kKMajor, KMajorCopy<T, Shape::kBlockN, Shape::kThreads>,
                                        NMajorCopy<T, Shape::kBlockN, Shape::kThreads>>;
  static constexpr int kCountM = Shape::kWarpRows / 16, kCountN = Shape::kWarpColumns / 16;
  using Left = LeftFragments<Shape::kBlockM, kCountM>;
  using Right = RightFragments<T, Shape::kBlockN, kCountN, kKMajor>;
  using Sums = float[kCountM][2 * kCountN][4];

  static constexpr uint32_t kRowBytes = RowCopy::Tile::kBytes;
  static constexpr uint32_t kStageBytes = kRowBytes + WeightCopy::Tile::kBytes;
  static_assert(Shape::kStages * kStageBytes <= Shape::kSharedBytes);

  static __device__ void multiply(Sums& sums, Left& left, Right& right) {
    if constexpr (sizeof(T) == 4) {
      round_to_tf32(left.values);
      round_to_tf32(right.values);
    }
#pragma unroll
    for (int m = 0; m < kCountM; ++m) {
#pragma unroll
      for (int n = 0; n < 2 * kCountN; ++n) {
        const uint32_t (&b)[4] = right.values[n / 2];
        ptx::multiply_add<T>(sums[m][n], left.values[m], b[n % 2 * 2], b[n % 2 * 2 + 1]);
      }
    }
  }

  // In a tile of few rows, warps that have none only help to copy.
  static __device__ void run(Sums& sums, RowCopy& rows, WeightCopy& weight, uint32_t shared, int k, int num_rows) {
    int remaining = (k + kStep<T> - 1) / kStep<T>;  // steps
    const int first_k = k - (remaining - 1) * kStep<T>;
    rows.first(shared, first_k);
    weight.first(shared + kRowBytes, first_k);
    ptx::commit_copies();
#pragma unroll
    for (int i = 1; i < Shape::kStages; ++i) {
      if (i < remaining) {
        rows.next(shared + i * kStageBytes);
        weight.next(shared + i * kStageBytes + kRowBytes);
      }
      ptx::commit_copies();
    }
    ptx::wait_for_copies<Shape::kStages - 1>();
    __syncthreads();
    // The vote tells the compiler that a warp's lanes agree, so that it counts stages in uniform registers.
    const int warp = static_cast<int>(threadIdx.x) / 32;
    if (Shape::kWarpsM == 1 || __any_sync(~0u, warp / Shape::kWarpsN * Shape::kWarpRows < num_rows)) {
      steps<true>(sums, rows, weight, shared, remaining);
    } else {
      steps<false>(sums, rows, weight, shared, remaining);
    }
  }

  // Both kinds of warps meet at the same number of barriers.
  template <bool kMultiplies>
  static __device__ void steps(Sums& sums, RowCopy& rows, WeightCopy& weight, uint32_t shared, int remaining) {
    const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
    const uint32_t left_offset = Left::offset(warp / Shape::kWarpsN * Shape::kWarpRows, lane);
    const uint32_t right_offset = kRowBytes + Right::offset(warp % Shape::kWarpsN * Shape::kWarpColumns, lane);
    Left left[2];
    Right right[2];
    uint32_t stage = shared;
    if constexpr (kMultiplies) {
      left[0].template load<0>(stage + left_offset);
      right[0].template load<0>(stage + right_offset);
    }
    while (true) {
      if constexpr (kMultiplies) {
        unrolled<kSlices - 1>([&](auto slice) {
          constexpr int kNext = slice + 1;
          left[kNext % 2].template load<kNext>(stage + left_offset);
          right[kNext % 2].template load<kNext>(stage + right_offset);
          multiply(sums, left[slice % 2], right[slice % 2]);
        });
      }
      if (--remaining == 0) break;
      ptx::wait_for_copies<Shape::kStages - 2>();
      __syncthreads();  // the next stage is there, and nobody reads this one any more
      const uint32_t free = stage;
      stage = stage == shared + (Shape::kStages - 1) * kStageBytes ? shared : stage + kStageBytes;
      if constexpr (kMultiplies) {
        left[0].template load<0>(stage + left_offset);
        right[0].template load<0>(stage + right_offset);
      }
      if (remaining >= Shape::kStages) {
        rows.next(free);
        weight.next(free + kRowBytes);
      }
      ptx::commit_copies();
      if constexpr (kMultiplies) multiply(sums, left[1], right[1]);
    }
    if constexpr (kMultiplies) multiply(sums, left[1], right[1]);
  }
};

// The row of the operand that stands in row i of a tile, or -1 for zeros. slots: of the tile's rows, or null.
__device__ inline int32_t source_row(const RowOperand& rows, const Tile& tile, const int32_t* slots, int i) {
  if (i >= tile.num_rows) return -1;
  const int32_t* const index = slots ? slots : rows.gather ? rows.gather + tile.first_row : nullptr;
  int32_t row = tile.first_row + i;
  if (index) {
    row = index[i];
    if (row >= 0) row = rows.divisor(row);
  }
  return row < rows.num_rows ? row : -1;
}

// A warp's sums, from its corner of a slice on.
template <int kStride, int kCountM, int kCountN>
__device__ void write_sums(const float (&sums)[kCountM][kCountN][4], uint32_t corner, int lane) {
  const uint32_t to = corner + (lane / 4 * kStride + lane % 4 * 2) * sizeof(float);
#pragma unroll
  for (int m = 0; m < kCountM; ++m) {
#pragma unroll
    for (int n = 0; n < kCountN; ++n) {
      const float (&values)[4] = sums[m][n];
      const uint32_t at = to + (m * 16 * kStride + n * 8) * sizeof(float);
      ptx::store_shared(at, values[0], values[1]);
      ptx::store_shared(at + 8 * kStride * sizeof(float), values[2], values[3]);
    }
  }
}

template <class Shape, class Epilogue>
constexpr bool kMayDecode = Shape::kBlockM == 16 && std::is_same_v<Epilogue, ActivateEpilogue>;

template <class T, class Shape, bool kKMajor, class Epilogue>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kBlocks)
    rows_product(const __grid_constant__ RowsProduct product, const __grid_constant__ Epilogue kernel_epilogue,
                 ColumnOrder order, FastDivide column_blocks) {
  using Loop = MainLoop<T, Shape, kKMajor>;
  extern __shared__ __align__(128) unsigned char shared[];
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32;
  const int tile_index = static_cast<int>(column_blocks(blockIdx.x));
  const int column_block = static_cast<int>(blockIdx.x - tile_index * column_blocks.divisor());
  Epilogue epilogue = kernel_epilogue;
  const int32_t* slots = nullptr;
  Tile tile;
  if (kMayDecode<Shape, Epilogue> && product.tiles.decode.topk_ids) {
    if constexpr (kMayDecode<Shape, Epilogue>) {
      __shared__ __align__(16) int32_t tile_slots[Shape::kBlockM], scratch[kDecodeScratch];
      tile = decode_tile<Shape::kBlockM, Shape::kThreads>(product.tiles, tile_index, tile_slots, scratch);
      if (blockIdx.x == 0) decode_publish<Shape::kBlockM, Shape::kThreads>(product.tiles, scratch);
      slots = tile_slots;
      epilogue.row_to_slot = tile_slots - tile.first_row;  // the one in global memory is being written
    }
  } else {
    if (tile_index >= *product.tiles.count) return;
    tile = product.tiles.tiles[tile_index];
  }
  const TileColumns columns{order, product.n,
                            column_block * (order == ColumnOrder::kPlain ? Shape::kBlockN : Shape::kBlockN / 2)};

  typename Loop::Sums sums = {};
  if (tile.expert >= 0 && tile.num_rows > 0 && product.k > 0) {
    const WeightOperand& weight = product.weight;
    typename Loop::RowCopy row_copy(static_cast<const T*>(product.rows.data), product.rows.stride, thread,
                                    [&](int i) { return source_row(product.rows, tile, slots, i); });
    typename Loop::WeightCopy weight_copy(static_cast<const T*>(weight.data) + tile.expert * weight.expert_stride,
                                          kKMajor ? weight.n_stride : weight.k_stride, thread,
                                          [&](int j) { return columns.weight_column(j, Shape::kBlockN); });
    Loop::run(sums, row_copy, weight_copy, ptx::shared_address(shared), product.k, tile.num_rows);
  }

  const int warp_row = warp / Shape::kWarpsN * Shape::kWarpRows;
  const int warp_column = warp % Shape::kWarpsN * Shape::kWarpColumns;
  for (int first = 0; first < tile.num_rows; first += Shape::kSliceRows) {
    __syncthreads();
    if (warp_row >= first && warp_row < first + Shape::kSliceRows) {
      const int corner = (warp_row - first) * Shape::kSumsStride + warp_column;
      write_sums<Shape::kSumsStride>(sums, ptx::shared_address(shared) + corner * sizeof(float), thread % 32);
    }
    __syncthreads();
    const Slice slice{tile.expert, tile.first_row + int64_t{first}, min(tile.num_rows - first, Shape::kSliceRows),
                      columns};
    finish<T, Shape::kSliceRows, Shape::kBlockN, Shape::kSumsStride, Shape::kThreads>(
        epilogue, reinterpret_cast<const float*>(shared), slice, thread);
  }
}

}  // namespace moe::cuda::mma
