// Products over rows by plain multiply-adds: any dtype, size and strides, and float32 that is exact in each product.
//
// A block has one tile of the list and 64 columns; column blocks run fastest, so that neighbours share the tile's rows
// in cache. Offsets of its rows (gathered) and of its weight columns (in their order) are put into shared memory first.
// For the order of sums see main_loop.cuh.
#pragma once

#include "cuda/common/launch_kernel.cuh"
#include "cuda/grouped_gemm/epilogue.cuh"
#include "cuda/grouped_gemm/epilogue_host.h"
#include "cuda/grouped_gemm/simt/access.h"
#include "cuda/grouped_gemm/simt/main_loop.cuh"

namespace moe::cuda::simt {

struct RowsLaunch {
  RowsProduct product;
  ColumnOrder order;
  Access rows_access, weight_access;
  FastDivide column_blocks;
};

struct NoTables {
  template <class A, class B>
  __device__ void select(int, A&, B&) const {}
  __device__ void prefetch(int) const {}
  __device__ void commit(int) const {}
};

template <class T, int kBlockM, class Epilogue>
__global__ void __launch_bounds__(kThreads, TileShape<T, kBlockM>::kMinBlocks)
    rows_kernel(const __grid_constant__ RowsLaunch launch, const __grid_constant__ Epilogue epilogue) {
  using A = acc_t<T>;
  using Shape = TileShape<T, kBlockM>;
  __shared__ __align__(16) A shared[Shape::kShared];
  __shared__ int64_t row_offsets[kBlockM], column_offsets[kBlockN];

  const RowsProduct& product = launch.product;
  const int thread = threadIdx.x;
  const uint32_t tile_index = launch.column_blocks(blockIdx.x);
  if (tile_index >= static_cast<uint32_t>(*product.tiles.count)) return;
  const Tile tile = product.tiles.tiles[tile_index];
  const int32_t column_block = blockIdx.x - tile_index * launch.column_blocks.divisor();
  const int32_t outputs = launch.order == ColumnOrder::kPlain ? kBlockN : kBlockN / 2;
  const Slice slice = {tile.expert, tile.first_row, tile.num_rows, {launch.order, product.n, column_block * outputs}};

  if (tile.expert >= 0) {
    if (thread < kBlockM) {
      int64_t row = tile.first_row + thread;
      if (thread < tile.num_rows && product.rows.gather) {
        const int32_t index = product.rows.gather[row];
        row = index < 0 ? int64_t{-1} : product.rows.divisor(index);
      }
      const bool present = thread < tile.num_rows && row >= 0 && row < product.rows.num_rows;
      row_offsets[thread] = present ? row * product.rows.stride : kAbsent;
    } else if (thread < kBlockM + kBlockN) {
      const int32_t column = slice.columns.weight_column(thread - kBlockM, kBlockN);
      column_offsets[thread - kBlockM] = column >= 0 ? column * product.weight.n_stride : kAbsent;
    }
    __syncthreads();
    const T* weight = static_cast<const T*>(product.weight.data) + tile.expert * product.weight.expert_stride;
    const Source<T> rows = {static_cast<const T*>(product.rows.data), row_offsets, product.rows.k_stride,
                            launch.rows_access};
    const Source<T> columns = {weight, column_offsets, product.weight.k_stride, launch.weight_access};
    Operand<T, kBlockM, false> a(rows, product.k, thread);
    Operand<T, kBlockN, false> b(columns, product.k, thread);
    NoTables none;
    product_of_tile<T, kBlockM>(a, b, product.k, thread, shared, none);
  }
  finish<T, kBlockM, kBlockN, Shape::kSumsStride, kThreads>(epilogue, shared, slice, thread);
}

template <class T, int kBlockM, class Epilogue>
Outcome launch_rows(const char* name, const RowsProduct& product, const Epilogue& epilogue, Stream stream) {
  const ColumnOrder order = column_order(epilogue);
  const int64_t outputs = order == ColumnOrder::kPlain ? kBlockN : kBlockN / 2;
  const TileColumns columns = {order, product.n, 0};
  const int64_t column_blocks = (columns.outputs() + outputs - 1) / outputs;
  const int64_t blocks = max_tiles(product.num_rows, product.num_experts, kBlockM) * column_blocks;
  if (blocks == 0) return {};
  if (blocks > INT32_MAX) return {Status::kInvalidArgument, 0, name};
  const RowsLaunch rows = {product, order, rows_access(product), weight_access(product, order),
                           FastDivide(static_cast<uint32_t>(column_blocks))};
  return launch(name, rows_kernel<T, kBlockM, Epilogue>, dim3(static_cast<uint32_t>(blocks)), dim3(kThreads), 0, stream,
                rows, prepare(epilogue, product));
}

template <class Epilogue>
Outcome run_rows(const char* name, const RowsProduct& product, const Epilogue& epilogue, const GemmPlan& plan,
                 Stream stream) {
  const bool fits =
      plan.family == Family::kSimt && (plan.block_m == 16 || plan.block_m == 64) && plan.block_n == kBlockN;
  if (!fits || product.tiles.decode.topk_ids) return {Status::kUnsupported, 0, name};
  return with_type(product.dtype, [&]<class T>(T*) {
    return plan.block_m == 16 ? launch_rows<T, 16>(name, product, epilogue, stream)
                              : launch_rows<T, 64>(name, product, epilogue, stream);
  });
}

}  // namespace moe::cuda::simt
