// Weight gradients with mma.sync: out[e][m, n] (+)= sum over the rows r of expert e of left[r, m] * right[r, n], where
// n is the dimension along which out is contiguous.
//
// A block computes a tile of one expert's out. Its warps share the rows of the reduction, which cp.async brings through
// a ring of stages (wgrad_rows.cuh), and each owns kWarpM x kWarpN sums in registers (wgrad_fragments.cuh). One barrier
// a step: it tells that the next stage has arrived and that nobody reads the previous one. An expert without rows makes
// no step: zeros, or with accumulate nothing at all.
//
// Every sum is one chain in float32 over ascending rows, cut where the instruction cuts it: 16 rows, 8 for tf32, from
// the expert's first row on. So neither the tile's size nor the other experts' rows change a bit of it.
#pragma once

#include "cuda/common/launch_kernel.cuh"
#include "cuda/grouped_gemm/mma/wgrad_fragments.cuh"
#include "cuda/grouped_gemm/mma/wgrad_launch.h"
#include "cuda/policy/gemm_plan.h"

namespace moe::cuda::mma {

template <class Value, int kBlockM_, int kBlockN_, int kWarpM_, int kWarpN_, int kStages_,
          int kBlocksPerMultiprocessor_>
struct WgradTile {
  using T = Value;
  static constexpr int kBlockM = kBlockM_, kBlockN = kBlockN_, kWarpM = kWarpM_, kWarpN = kWarpN_;
  static constexpr int kStages = kStages_, kBlocksPerMultiprocessor = kBlocksPerMultiprocessor_;
  static constexpr int kWarpsN = kBlockN / kWarpN;
  static constexpr int kThreads = kBlockM / kWarpM * kWarpsN * 32;
  static constexpr int kStepRows = kMmaWgradStepBytes / sizeof(T);

  using Left = RowLoader<T, kBlockM, kStepRows, kThreads>;
  using Right = RowLoader<T, kBlockN, kStepRows, kThreads>;
  using Product = WarpProduct<T, kBlockM, kBlockN, kWarpM, kWarpN>;
  static constexpr int kParts = kStepRows / Product::kPartRows;
  static_assert(kParts % 2 == 0, "two sets of fragments take turns");

  static constexpr int kStageBytes = Left::kBytes + Right::kBytes;
  static constexpr int kSliceBytes = kSliceRows * kWarpN * static_cast<int>(sizeof(float));
  static constexpr int kSharedBytes = kStages * kStageBytes;
  static_assert(kSharedBytes == mma_wgrad_shared_bytes(kBlockM, kBlockN, kStages));
  static_assert(kThreads / 32 * kSliceBytes <= kSharedBytes);

  static constexpr GemmPlan plan() { return {Family::kMma, kBlockM, kBlockN, kStepRows, kStages}; }
};

// Writes the warp's sums from (first_m, first_n) of an expert's out on. A lane moves 16 bytes at a time, and as many
// lanes as a row has chunks move it together.
template <class Tile, class Out, bool kAccumulate>
__device__ void write_sums(const typename Tile::Product& product, Out* slice, Out* out, const WgradArguments& p,
                           int first_m, int first_n, int lane) {
  constexpr int kPerChunk = 16 / sizeof(Out), kRowChunks = Tile::kWarpN / kPerChunk, kRowsAtOnce = 32 / kRowChunks;
  constexpr int kBatch = 8;  // loads under way at a time
  const int chunk = lane % kRowChunks, column = first_n + chunk * kPerChunk;
#pragma unroll
  for (int which = 0; which < Tile::kWarpM / kSliceRows; ++which) {
    product.template to_shared<Out>(ptx::shared_address(slice), which, lane);
    __syncwarp();
#pragma unroll
    for (int first = 0; first < kSliceRows; first += kBatch * kRowsAtOnce) {
      Vector<Out, kPerChunk> before[kAccumulate ? kBatch : 1];
      const int row0 = first + lane / kRowChunks, m0 = first_m + which * kSliceRows + row0;
      Out* to = out + m0 * p.out_stride + column;
      const int64_t skip = kRowsAtOnce * p.out_stride;
      const int rows = column < p.right.columns ? (p.left.columns - m0 + kRowsAtOnce - 1) / kRowsAtOnce : 0;
      if constexpr (kAccumulate) {
#pragma unroll
        for (int i = 0; i < kBatch; ++i) {
          if (i < rows) before[i] = load<kPerChunk>(to + i * skip);
        }
      }
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const int row = row0 + i * kRowsAtOnce;
        Vector<Out, kPerChunk> sums =
            load<kPerChunk>(slice + row * Tile::kWarpN + slice_chunk<Out>(row, chunk) * kPerChunk);
        if (i >= rows) continue;
        if constexpr (kAccumulate) {
#pragma unroll
          for (int j = 0; j < kPerChunk; ++j) sums.values[j] += before[i].values[j];
        }
        store(to + i * skip, sums);
      }
    }
    __syncwarp();
  }
}

template <class Tile>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kBlocksPerMultiprocessor)
    wgrad_kernel(const __grid_constant__ WgradArguments p) {
  using T = typename Tile::T;
  extern __shared__ __align__(128) char shared[];
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;

  // Expert after expert, and within one in bands of kBand tiles across: blocks that run together share rows of both
  // operands.
  constexpr uint32_t kBand = 8;
  const uint32_t expert = p.tiles_per_expert(blockIdx.x);
  const uint32_t tile = blockIdx.x - expert * p.tiles_m * p.tiles_n;
  const uint32_t band = tile / (kBand * p.tiles_m), in_band = tile - band * kBand * p.tiles_m;
  const uint32_t width = min(kBand, p.tiles_n - band * kBand);
  const int block_m = in_band / width * Tile::kBlockM;
  const int block_n = (band * kBand + in_band % width) * Tile::kBlockN;

  const int32_t begin = min(max(p.expert_offsets[expert], 0), p.num_rows);
  const int32_t end = min(max(p.expert_offsets[expert + 1], begin), p.num_rows);
  const int steps = (end - begin + Tile::kStepRows - 1) / Tile::kStepRows;
  if (p.accumulate && steps == 0) return;

  const int warp_m = warp / Tile::kWarpsN * Tile::kWarpM, warp_n = warp % Tile::kWarpsN * Tile::kWarpN;
  typename Tile::Product product(warp_m, warp_n, lane);
  typename Tile::Left left(p.left, begin, end, block_m, thread);
  typename Tile::Right right(p.right, begin, end, block_n, thread);

  const uint32_t first_stage = ptx::shared_address(shared), past_stages = first_stage + Tile::kSharedBytes;
  const auto copy_step = [&](uint32_t stage, int32_t left_found, int32_t right_found) {
    left.copy(stage, left_found);
    right.copy(stage + Tile::Left::kBytes, right_found);
  };
  int32_t left_found[Tile::kStages], right_found[Tile::kStages];
#pragma unroll
  for (int i = 0; i < Tile::kStages; ++i) left_found[i] = left.find(), right_found[i] = right.find();
#pragma unroll
  for (int i = 0; i < Tile::kStages - 1; ++i) {
    if (i < steps) copy_step(first_stage + i * Tile::kStageBytes, left_found[i], right_found[i]);
    ptx::commit_copies();
  }
  int32_t next_left = left_found[Tile::kStages - 1], next_right = right_found[Tile::kStages - 1];

  typename Tile::Product::Fragments fragments[2];
  uint32_t reading = first_stage, writing = first_stage + (Tile::kStages - 1) * Tile::kStageBytes;
  const auto next_stage = [&](uint32_t stage) {
    stage += Tile::kStageBytes;
    return stage == past_stages ? first_stage : stage;
  };
  if (steps > 0) {
    ptx::wait_for_copies<Tile::kStages - 2>();
    __syncthreads();
    product.load(fragments[0], reading, reading + Tile::Left::kBytes, 0);
  }
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
#pragma unroll
    for (int part = 0; part < Tile::kParts; ++part) {
      if (part + 1 < Tile::kParts) {
        product.load(fragments[(part + 1) % 2], reading, reading + Tile::Left::kBytes, part + 1);
      } else if (step + 1 < steps) {
        ptx::wait_for_copies<Tile::kStages - 2>();
        __syncthreads();
        reading = next_stage(reading);
        product.load(fragments[(part + 1) % 2], reading, reading + Tile::Left::kBytes, 0);
      }
      if (part == 0) {
        if (step + Tile::kStages - 1 < steps) {
          copy_step(writing, next_left, next_right);
          writing = next_stage(writing);
          next_left = left.find(), next_right = right.find();
        }
        ptx::commit_copies();
      }
      product.multiply(fragments[part % 2]);
    }
  }

  __syncthreads();  // the stages become slices
  char* slice = shared + warp * Tile::kSliceBytes;
  const int first_m = block_m + warp_m, first_n = block_n + warp_n;
  const int64_t first_element = expert * p.out_expert_stride;
  if (p.accumulate) {
    write_sums<Tile, float, true>(product, reinterpret_cast<float*>(slice), static_cast<float*>(p.out) + first_element,
                                  p, first_m, first_n, lane);
  } else {
    write_sums<Tile, T, false>(product, reinterpret_cast<T*>(slice), static_cast<T*>(p.out) + first_element, p, first_m,
                               first_n, lane);
  }
}

template <class Tile>
Outcome launch_tile(const WgradArguments& arguments, int64_t num_experts, Stream stream) {
  const auto tiles = [](int64_t size, int64_t block) { return (size + block - 1) / block; };
  WgradArguments p = arguments;
  const int64_t tiles_m = tiles(p.left.columns, Tile::kBlockM), tiles_n = tiles(p.right.columns, Tile::kBlockN);
  const int64_t blocks = num_experts * tiles_m * tiles_n;
  if (blocks > INT32_MAX) return {Status::kUnsupported, 0, "wgrad_kernel"};
  p.tiles_m = static_cast<uint32_t>(tiles_m);
  p.tiles_n = static_cast<uint32_t>(tiles_n);
  p.tiles_per_expert = FastDivide(static_cast<uint32_t>(tiles_m * tiles_n));
  return launch("wgrad_kernel", wgrad_kernel<Tile>, dim3(static_cast<uint32_t>(blocks)), dim3(Tile::kThreads),
                Tile::kSharedBytes, stream, p);
}

// Launches the first of the tiles that the plan names.
template <class... Tiles>
Outcome launch_planned(const WgradArguments& arguments, int64_t num_experts, const GemmPlan& plan, Stream stream) {
  Outcome outcome{Status::kUnsupported, 0, "wgrad_kernel"};
  static_cast<void>(
      ((plan == Tiles::plan() && (outcome = launch_tile<Tiles>(arguments, num_experts, stream), true)) || ...));
  return outcome;
}

}  // namespace moe::cuda::mma
