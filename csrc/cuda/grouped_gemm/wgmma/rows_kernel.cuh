// Products over sorted rows with wgmma: 128 rows x kBlockN columns of an expert's weight to a tile, 64 of k to a stage.
//
// Blocks are persistent: block b works on tiles b, b + gridDim.x, ... of all tiles x column blocks, column blocks
// fastest. Warpgroup 0 loads: weights by TMA, rows by TMA where they follow each other and fill the tile, else 16 bytes
// at a time with cp.async. Warpgroups 1 and 2 multiply, each 64 rows, while the next stages load. Sums then go through
// shared memory, 64 tile columns at a time, to the epilogue. A warpgroup whose rows all lie past the tile's end only
// passes stages on.
//
// Each sum is one chain over k ascending, 16 elements to a link, whatever the tile.
#pragma once

#include "cuda/grouped_gemm/epilogue.cuh"
#include "cuda/grouped_gemm/wgmma/consumer.cuh"
#include "cuda/grouped_gemm/wgmma/shape.cuh"
#include "cuda/ptx/named_barrier.cuh"

namespace moe::cuda::wgmma {

// What the host works out for all blocks.
struct RowsSchedule {
  ColumnOrder order;
  bool transposed;      // the weight's elements lie along n
  bool rows_by_tensor;  // there is a tensor map of the rows
  int32_t matrix_step;  // from expert to expert in the weight's tensor map: 0 where all share one matrix
  int32_t block_outputs;
  uint32_t column_blocks;
  FastDivide to_row_tile;  // by column_blocks
};

// One tile of one block, as all its warps see it.
struct RowsWork {
  Tile tile;
  TileColumns columns;

  __device__ RowsWork(const RowsProduct& product, const RowsSchedule& schedule, uint32_t index) {
    const uint32_t row_tile = schedule.to_row_tile(index), column_block = index - row_tile * schedule.column_blocks;
    const int4 bits = __ldg(reinterpret_cast<const int4*>(product.tiles.tiles) + row_tile);
    tile = {bits.x, bits.y, bits.z, bits.w};
    columns = {schedule.order, product.n, static_cast<int32_t>(column_block) * schedule.block_outputs};
  }
};

__device__ inline uint32_t num_works(const RowsProduct& product, const RowsSchedule& schedule) {
  return static_cast<uint32_t>(__ldg(product.tiles.count)) * schedule.column_blocks;
}

// One thread's share of a tile's rows: the same chunk of every 16th row.
class RowsGather {
 public:
  __device__ RowsGather(const RowOperand& rows, const Tile& tile, int thread)
      : chunk_(thread % kChunks), offset_(chunk_offset(thread / kChunks, chunk_)) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      source_[i] = static_cast<const uint8_t*>(rows.data);
      const int in_tile = thread / kChunks + i * kRowStep;
      int32_t row = -1;
      if (in_tile < tile.num_rows) row = find_row(rows, tile.first_row + in_tile);
      if (row < 0) continue;
      valid_ |= 1u << i;
      source_[i] += (row * rows.stride + chunk_ * kChunkElements) * kElementBytes;
    }
  }

  // Elements first .. first + 63 of each row; those from k on are zeros, as are rows that don't exist.
  __device__ void copy(uint32_t to, int32_t first, int32_t k) const {
    const int32_t bytes = bytes_of_chunk(first + chunk_ * kChunkElements, k);
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      ptx::copy_async_part(to + offset_ + i * kRowStep * kRowBytes, source_[i] + int64_t{first} * kElementBytes,
                           (valid_ >> i & 1) != 0 ? bytes : 0);
    }
  }

 private:
  static constexpr int kRowStep = kWarpgroup / kChunks, kCount = kBlockM / kRowStep;
  int chunk_;
  uint32_t offset_, valid_ = 0;
  const uint8_t* source_[kCount];
};

template <int kBlockN>
__device__ void produce(SharedMemory<kBlockN>& shared, const CUtensorMap& weight_map, const CUtensorMap& rows_map,
                        const RowsProduct& product, const RowsSchedule& schedule) {
  const int thread = threadIdx.x;
  RingPlace place(shared.barriers);
  const uint32_t works = num_works(product, schedule);
  for (uint32_t index = blockIdx.x; index < works; index += gridDim.x) {
    const RowsWork work(product, schedule, index);
    if (work.tile.expert < 0) continue;
    // Rows past a tile's end belong to other experts or to none, and need not hold anything.
    const bool by_tensor = schedule.rows_by_tensor && work.tile.num_rows == kBlockM;
    Tile to_gather = work.tile;
    if (by_tensor) to_gather.num_rows = 0;
    const RowsGather gather(product.rows, to_gather, thread);
    const int32_t matrix = work.tile.expert * schedule.matrix_step;
    for (int32_t step = 0; step < num_steps(product.k); ++step, place.next()) {
      const int32_t first = step * kBox;
      const uint32_t rows = ptx::shared_address(shared.left[place.stage()]);
      const uint32_t weight = ptx::shared_address(shared.right[place.stage()]);
      place.wait_until_empty();
      if (thread == 0) {
        ptx::arrive_expecting(place.full(), sizeof(shared.right[0]) + (by_tensor ? sizeof(shared.left[0]) : 0));
        for (int box = 0; box < kBlockN / kBox; ++box) {
          int32_t column = work.columns.weight_column(box * kBox, kBlockN);
          if (column < 0) column = product.n;  // outside, where TMA finds zeros
          ptx::copy_box(weight + box * kBoxBytes, weight_map, schedule.transposed ? column : first,
                        schedule.transposed ? first : column, matrix, place.full());
        }
        for (int box = 0; by_tensor && box < kBlockM / kBox; ++box) {
          ptx::copy_box(rows + box * kBoxBytes, rows_map, first, work.tile.first_row + box * kBox, 0, place.full());
        }
      }
      if (!by_tensor) gather.copy(rows, first, product.k);
      ptx::arrive_after_copies(place.full());
    }
  }
}

template <class T, int kBlockN, class Epilogue>
__device__ void consume(SharedMemory<kBlockN>& shared, int group, const RowsProduct& product, const Epilogue& epilogue,
                        const RowsSchedule& schedule) {
  constexpr int kSlices = kBlockN / kSliceColumns;
  const int thread = threadIdx.x % kWarpgroup;
  const StagedOperand rows{ptx::shared_address(shared.left) + group * kBoxBytes, sizeof(shared.left[0])};
  const StagedOperand weight{ptx::shared_address(shared.right), sizeof(shared.right[0])};
  RingPlace place(shared.barriers);
  const uint32_t works = num_works(product, schedule);
  for (uint32_t index = blockIdx.x; index < works; index += gridDim.x) {
    const RowsWork work(product, schedule, index);
    const int32_t steps = work.tile.expert < 0 ? 0 : num_steps(product.k);
    const int num_rows = min(work.tile.num_rows - group * kBox, kBox);
    if (num_rows <= 0) {
      pass_stages(steps, place);
      continue;
    }
    float sums[kBlockN / 2] = {};
    if (schedule.transposed) {
      multiply_stages<T, false, true>(rows, weight, steps, place, sums);
    } else {
      multiply_stages<T, false, false>(rows, weight, steps, place, sums);
    }
    Slice slice{work.tile.expert, int64_t{work.tile.first_row} + group * kBox, num_rows, work.columns};
#pragma unroll 1
    for (int i = 0; i < kSlices && slice.columns.first < slice.columns.outputs(); ++i) {
      write_slice(sums, schedule.order == ColumnOrder::kSplit, i, shared.slices[group], thread);
      ptx::sync_threads<kWarpgroup>(1 + group);
      finish<T, kBox, kSliceColumns, kSliceStride, kWarpgroup>(epilogue, shared.slices[group], slice, thread);
      ptx::sync_threads<kWarpgroup>(1 + group);
      slice.columns.first += schedule.block_outputs / kSlices;
    }
  }
}

template <class T, int kBlockN, class Epilogue>
__global__ __launch_bounds__(kThreads, 1) void rows_kernel(const __grid_constant__ CUtensorMap weight_map,
                                                           const __grid_constant__ CUtensorMap rows_map,
                                                           const __grid_constant__ RowsProduct product,
                                                           const __grid_constant__ Epilogue epilogue,
                                                           const __grid_constant__ RowsSchedule schedule) {
  extern __shared__ __align__(kPatternBytes) uint8_t bytes[];
  auto& shared = *reinterpret_cast<SharedMemory<kBlockN>*>(bytes);
  specialise(
      shared.barriers, [&] { produce(shared, weight_map, rows_map, product, schedule); },
      [&](int group) { consume<T>(shared, group, product, epilogue, schedule); });
}

}  // namespace moe::cuda::wgmma
