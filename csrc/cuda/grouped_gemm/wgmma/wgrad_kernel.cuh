// Weight gradients with wgmma: out[e][m, n] (+)= sum over the rows r of e of left[r, m] * right[r, n], where n is the
// dimension along which out is contiguous. 128 x kBlockN sums to a tile, 64 rows to a stage.
//
// Blocks are persistent: block b works on tiles b, b + gridDim.x, ... of all experts x tiles of out, n fastest. Warpgroup 0
// loads both operands as they are, rows of 128 bytes, which wgmma reads transposed: by TMA where 64 rows follow each
// other, else 16 bytes at a time with cp.async. Past an expert's last row both operands are zeros. Warpgroups 1 and 2
// multiply, each 64 of m. An expert without rows has no steps: its sums are zeros.
//
// Each sum is one chain over rows ascending, 16 to a link from the expert's first row on, whatever the tile.
#pragma once

#include "cuda/common/numeric.cuh"
#include "cuda/grouped_gemm/wgmma/consumer.cuh"
#include "cuda/grouped_gemm/wgmma/shape.cuh"
#include "cuda/ptx/named_barrier.cuh"

namespace moe::cuda::wgmma {

struct WgradOperand {
  RowOperand rows;
  int32_t columns;
  bool by_tensor;  // there is a tensor map
};

struct WgradArguments {
  WgradOperand left, right;
  const int32_t* expert_offsets;
  int32_t num_rows;
  void* out;
  int64_t out_expert_stride, out_stride;
  bool accumulate;  // into float, else out has the operands' type
  bool vector;      // four columns of out move as one access
  uint32_t works, tiles_n, tiles;  // of an expert: tiles along n, tiles in all
  FastDivide by_tiles_n, by_tiles;
};

// One tile of one block, as all its warps see it.
struct WgradWork {
  int32_t expert, begin, end;  // of the expert's rows
  int32_t first_m, first_n;

  __device__ WgradWork(const WgradArguments& arguments, int block_n, uint32_t index) {
    const uint32_t e = arguments.by_tiles(index), tile = index - e * arguments.tiles;
    const uint32_t tile_m = arguments.by_tiles_n(tile), tile_n = tile - tile_m * arguments.tiles_n;
    expert = static_cast<int32_t>(e);
    first_m = static_cast<int32_t>(tile_m) * kBlockM;
    first_n = static_cast<int32_t>(tile_n) * block_n;
    const int32_t* const offset = arguments.expert_offsets + e;
    begin = min(max(__ldg(offset), 0), arguments.num_rows);
    end = max(min(__ldg(offset + 1), arguments.num_rows), begin);
  }
  __device__ int32_t steps() const { return num_steps(end - begin); }
};

// One thread's share of the loads of one operand: the same chunk of every 16th of 64 rows, in each box.
template <int kBoxes>
class WgradLoader {
 public:
  static constexpr uint32_t kBytes = kBoxes * kBoxBytes;

  __device__ WgradLoader(const WgradOperand& operand, const CUtensorMap& map, int thread)
      : operand_(operand), map_(map), thread_(thread) {}

  // To be called for each step before it is loaded, the earlier the better: rows are looked up in memory.
  __device__ void find(int32_t first, int32_t end) {
    by_tensor_ = operand_.by_tensor && first <= end - kBox;
    first_ = first;
    if (by_tensor_) return;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const int32_t row = first + thread_ / kChunks + i * kRowStep;
      rows_[i] = row < end ? find_row(operand_.rows, row) : -1;
    }
  }

  __device__ uint32_t announced_bytes() const { return by_tensor_ ? kBytes : 0; }

  // Columns from `column` on.
  __device__ void load(uint32_t to, int32_t column, uint64_t& full) const {
    if (by_tensor_) {
      if (thread_ != 0) return;
      for (int box = 0; box < kBoxes; ++box) {
        ptx::copy_box(to + box * kBoxBytes, map_, column + box * kBox, first_, 0, full);
      }
      return;
    }
    const int chunk = thread_ % kChunks;
    to += chunk_offset(thread_ / kChunks, chunk);
    column += chunk * kChunkElements;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const auto* const row = static_cast<const uint8_t*>(operand_.rows.data) +
                              (max(rows_[i], 0) * operand_.rows.stride + column) * kElementBytes;
#pragma unroll
      for (int box = 0; box < kBoxes; ++box) {
        const int32_t bytes = bytes_of_chunk(column + box * kBox, operand_.columns);
        ptx::copy_async_part(to + i * kRowStep * kRowBytes + box * kBoxBytes, row + box * kRowBytes,
                             rows_[i] >= 0 ? bytes : 0);
      }
    }
  }

 private:
  static constexpr int kRowStep = kWarpgroup / kChunks, kCount = kBox / kRowStep;
  const WgradOperand& operand_;
  const CUtensorMap& map_;
  int thread_;
  bool by_tensor_ = false;
  int32_t first_ = 0, rows_[kCount];
};

template <int kBlockN>
__device__ void produce(SharedMemory<kBlockN>& shared, const CUtensorMap& left_map, const CUtensorMap& right_map,
                        const WgradArguments& arguments) {
  const int thread = threadIdx.x;
  RingPlace place(shared.barriers);
  WgradLoader<kBlockM / kBox> left(arguments.left, left_map, thread);
  WgradLoader<kBlockN / kBox> right(arguments.right, right_map, thread);
  for (uint32_t index = blockIdx.x; index < arguments.works; index += gridDim.x) {
    const WgradWork work(arguments, kBlockN, index);
    for (int32_t first = work.begin, step = 0; step < work.steps(); ++step, first += kBox, place.next()) {
      left.find(first, work.end);
      right.find(first, work.end);
      place.wait_until_empty();
      if (thread == 0) ptx::arrive_expecting(place.full(), left.announced_bytes() + right.announced_bytes());
      left.load(ptx::shared_address(shared.left[place.stage()]), work.first_m, place.full());
      right.load(ptx::shared_address(shared.right[place.stage()]), work.first_n, place.full());
      ptx::arrive_after_copies(place.full());
    }
  }
}

// Threads take four neighbouring columns, or single ones where out doesn't allow vectors, of every 8th row.
template <class Out>
__device__ void write_out(Out* out, int64_t stride, bool vector, bool accumulate, int rows, int columns,
                          const float* slice, int thread) {
  constexpr int kRun = 4, kLanes = kSliceColumns / kRun;
  const int lane = thread % kLanes, first = vector ? lane * kRun : lane, step = vector ? 1 : kLanes;
  for (int row = thread / kLanes; row < rows; row += kWarpgroup / kLanes) {
    Out* const to = out + row * stride;
    const float* const from = slice + row * kSliceStride;
    if (vector) {
      if (first >= columns) continue;
      float sums[kRun];
      to_acc(load<kRun>(from + first), sums);
      if (accumulate) {
        float before[kRun];
        to_acc(load<kRun>(to + first), before);
#pragma unroll
        for (int i = 0; i < kRun; ++i) sums[i] += before[i];
      }
      store(to + first, from_acc<Out>(sums));
    } else {
#pragma unroll
      for (int i = 0; i < kRun; ++i) {
        const int column = first + i * step;
        if (column < columns) to[column] = from_acc<Out>(from[column] + (accumulate ? to_acc(to[column]) : 0.0f));
      }
    }
  }
}

template <class T, int kBlockN>
__device__ void consume(SharedMemory<kBlockN>& shared, int group, const WgradArguments& arguments) {
  const int thread = threadIdx.x % kWarpgroup;
  const StagedOperand left{ptx::shared_address(shared.left) + group * kBoxBytes, sizeof(shared.left[0])};
  const StagedOperand right{ptx::shared_address(shared.right), sizeof(shared.right[0])};
  float* const slice = shared.slices[group];
  RingPlace place(shared.barriers);
  for (uint32_t index = blockIdx.x; index < arguments.works; index += gridDim.x) {
    const WgradWork work(arguments, kBlockN, index);
    const int32_t first_m = work.first_m + group * kBox, rows = min(arguments.left.columns - first_m, kBox);
    if (rows <= 0 || (arguments.accumulate && work.steps() == 0)) {
      pass_stages(work.steps(), place);
      continue;
    }
    float sums[kBlockN / 2] = {};
    multiply_stages<T, true, true>(left, right, work.steps(), place, sums);
#pragma unroll 1
    for (int i = 0; i < kBlockN / kSliceColumns; ++i) {
      const int32_t first_n = work.first_n + i * kSliceColumns;
      if (first_n >= arguments.right.columns) break;
      const int columns = min(arguments.right.columns - first_n, kSliceColumns);
      write_slice(sums, false, i, slice, thread);
      ptx::sync_threads<kWarpgroup>(1 + group);
      const auto write = [&]<class Out>(Out* out) {
        out += work.expert * arguments.out_expert_stride + first_m * arguments.out_stride + first_n;
        write_out(out, arguments.out_stride, arguments.vector, arguments.accumulate, rows, columns, slice, thread);
      };
      if (arguments.accumulate) {
        write(static_cast<float*>(arguments.out));
      } else {
        write(static_cast<T*>(arguments.out));
      }
      ptx::sync_threads<kWarpgroup>(1 + group);
    }
  }
}

template <class T, int kBlockN>
__global__ __launch_bounds__(kThreads, 1) void wgrad_kernel(const __grid_constant__ CUtensorMap left_map,
                                                            const __grid_constant__ CUtensorMap right_map,
                                                            const __grid_constant__ WgradArguments arguments) {
  extern __shared__ __align__(kPatternBytes) uint8_t bytes[];
  auto& shared = *reinterpret_cast<SharedMemory<kBlockN>*>(bytes);
  specialise(
      shared.barriers, [&] { produce(shared, left_map, right_map, arguments); },
      [&](int group) { consume<T>(shared, group, arguments); });
}

}  // namespace moe::cuda::wgmma
