// Weight gradients with wgmma: out[e][m, n] (+)= sum over the rows r of e of left[r, m] * right[r, n], where n is the
// dimension along which out is contiguous. 128 x kBlockN sums to a tile, 64 rows to a stage.
//
// Blocks are persistent: block b works on tiles b, b + gridDim.x, ... of all experts x tiles of out, n fastest.
// Warpgroup 0 loads both operands as they are, rows of 128 bytes, which wgmma reads transposed: by TMA where 64 rows
// follow each other, else 16 bytes at a time with cp.async. Past an expert's last row both operands are zeros.
// Warpgroups 1 and 2 multiply, each 64 of m. An expert without rows has no steps: its sums are zeros.
//
// Each sum is one chain over rows ascending, 16 to a link from the expert's first row on, whatever the tile.
#pragma once

#include <type_traits>

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
  bool accumulate;                 // into float, else out has the operands' type
  bool vector;                     // 16 bytes of out move as one access
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

// Part of out that a slice goes to. float: what is there is added to.
template <class Out>
struct WgradTarget {
  Out* out;  // at the slice's first row and column
  int64_t stride;
  int rows, columns;
};

// 16 bytes of out to a thread, in every so many rows. Four columns each: the sums, added to what is there.
__device__ inline void write_vectors(const WgradTarget<float>& target, const float* slice, int thread) {
  constexpr int kLanes = kSliceColumns / 4, kRowStep = kWarpgroup / kLanes, kCount = kBox / kRowStep;
  const int column = thread % kLanes * 4, first_row = thread / kLanes;
  if (column >= target.columns) return;
  float* const to = target.out + first_row * target.stride + column;
  // All loads before the first store: their latency is paid once.
  float4 sums[kCount];
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    if (first_row + i * kRowStep >= target.rows) break;
    sums[i] = *reinterpret_cast<const float4*>(to + i * kRowStep * target.stride);
  }
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const int row = first_row + i * kRowStep;
    if (row >= target.rows) break;
    const float4 more = *reinterpret_cast<const float4*>(slice + row * kSliceStride + column);
    *reinterpret_cast<float4*>(to + i * kRowStep * target.stride) =
        make_float4(sums[i].x + more.x, sums[i].y + more.y, sums[i].z + more.z, sums[i].w + more.w);
  }
}

// Eight columns each: the sums.
template <class Out>
__device__ void write_vectors(const WgradTarget<Out>& target, const float* slice, int thread) {
  constexpr int kLanes = kSliceColumns / 8, kRowStep = kWarpgroup / kLanes;
  const int column = thread % kLanes * 8, first_row = thread / kLanes;
  if (column >= target.columns) return;
  // Half of each eight threads read their second four columns first, or they would meet in the banks.
  const int swap = thread % kLanes / 4 * 4;
  const float* const from = slice + first_row * kSliceStride + column;
  Out* const to = target.out + first_row * target.stride + column;
#pragma unroll
  for (int i = 0; i < kBox / kRowStep; ++i) {
    if (first_row + i * kRowStep >= target.rows) break;
    const float* const sums = from + i * kRowStep * kSliceStride;
    float first[4], second[4];
    to_acc(load<4>(sums + swap), first);
    to_acc(load<4>(sums + 4 - swap), second);
    const Vector<Out, 4> halves[2] = {from_acc<Out>(first), from_acc<Out>(second)};
    const uint2 one = reinterpret_cast<const uint2&>(halves[0]), other = reinterpret_cast<const uint2&>(halves[1]);
    const uint2 low = swap == 0 ? one : other, high = swap == 0 ? other : one;
    // Not needed again soon. Also, the compiler takes a plain store of uint4 apart here.
    __stcs(reinterpret_cast<uint4*>(to + i * kRowStep * target.stride), make_uint4(low.x, low.y, high.x, high.y));
  }
}

template <class Out>
__device__ void write_elements(const WgradTarget<Out>& target, const float* slice, int thread) {
  const int column = thread % kSliceColumns;
  if (column >= target.columns) return;
  for (int row = thread / kSliceColumns; row < target.rows; row += kWarpgroup / kSliceColumns) {
    Out& to = target.out[row * target.stride + column];
    const float before = std::is_same_v<Out, float> ? to_acc(to) : 0.0f;
    to = from_acc<Out>(slice[row * kSliceStride + column] + before);
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
        const WgradTarget<Out> target{out, arguments.out_stride, rows, columns};
        if (arguments.vector) {
          write_vectors(target, slice, thread);
        } else {
          write_elements(target, slice, thread);
        }
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
