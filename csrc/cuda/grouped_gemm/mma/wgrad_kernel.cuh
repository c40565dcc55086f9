// Weight gradients with mma.sync: out[e][m, n] (+)= sum over the rows r of expert e of left[r, m] * right[r, n], where
// n is the dimension along which out is contiguous.
//
// A block computes a tile of one expert's out. Its warps share the rows of the reduction, which cp.async brings through
// a ring of stages (wgrad_rows.cuh), and each owns kWarpM x kWarpN sums in registers (wgrad_fragments.cuh). One barrier
// a step: it tells that the next stage has arrived and that nobody reads the previous one. In an expert's last step
// only the products that have rows are computed. An expert without rows makes no step: zeros, or with accumulate
// nothing at all.
//
// Every sum is one chain in float32 over ascending rows, cut where the instruction cuts it: 16 rows, 8 for tf32, from
// the expert's first row on. So neither the tile's size nor the other experts' rows change a bit of it.
#pragma once

#include "cuda/common/launch_kernel.cuh"
#include "cuda/grouped_gemm/mma/wgrad_fragments.cuh"
#include "cuda/grouped_gemm/mma/wgrad_launch.h"
#include "cuda/policy/gemm_plan.h"

namespace moe::cuda::mma {

template <class Value, int kBlockM_, int kBlockN_, int kWarpM_, int kWarpN_, int kStepRows_, int kStages_,
          int kBlocksPerMultiprocessor_>
struct WgradTile {
  using T = Value;
  static constexpr int kBlockM = kBlockM_, kBlockN = kBlockN_, kWarpM = kWarpM_, kWarpN = kWarpN_;
  static constexpr int kStepRows = kStepRows_, kStages = kStages_;
  static constexpr int kBlocksPerMultiprocessor = kBlocksPerMultiprocessor_;
  static constexpr int kWarpsN = kBlockN / kWarpN;
  static constexpr int kThreads = kBlockM / kWarpM * kWarpsN * 32;

  using Left = RowLoader<T, kBlockM, kStepRows, kThreads>;
  using Right = RowLoader<T, kBlockN, kStepRows, kThreads>;
  using Product = WarpProduct<T, kBlockM, kBlockN, kWarpM, kWarpN>;
  static constexpr int kParts = kStepRows / Product::kPartRows;
  static_assert(kParts % 2 == 0, "two sets of fragments take turns");

  static constexpr int kStageBytes = Left::kBytes + Right::kBytes;
  static constexpr int kSliceBytes = kSliceRows * Product::template kSliceRowBytes<float>;
  static constexpr int kSharedBytes = kStages * kStageBytes;
  static_assert(kSharedBytes == mma_wgrad_shared_bytes(kBlockM, kBlockN, kStepRows * sizeof(T), kStages));
  static_assert(kThreads / 32 * kSliceBytes <= kSharedBytes);

  static constexpr GemmPlan plan() { return {Family::kMma, kBlockM, kBlockN, kStepRows, kStages}; }
};

// Writes the warp's sums from (first_m, first_n) of an expert's out on. A lane moves 16 bytes at a time, and as many
// lanes as a row has chunks move it together.
template <class Tile, class Out, bool kAccumulate>
__device__ void write_sums(const typename Tile::Product& product, char* slice, Out* out, const WgradArguments& p,
                           int first_m, int first_n, int lane) {
  using Product = typename Tile::Product;
  constexpr int kPerChunk = 16 / sizeof(Out), kRowChunks = Tile::kWarpN / kPerChunk, kRowsAtOnce = 32 / kRowChunks;
  constexpr int kBatch = 8;  // loads under way at a time
  const int chunk = lane % kRowChunks, column = first_n + chunk * kPerChunk;
  const int64_t skip = kRowsAtOnce * p.out_stride * static_cast<int64_t>(sizeof(Out));
  char* to = reinterpret_cast<char*>(out + (first_m + lane / kRowChunks) * p.out_stride + column);
  // How many of the rows that this lane writes are there.
  int rows =
      column < p.right.columns ? (p.left.columns - first_m - lane / kRowChunks + kRowsAtOnce - 1) / kRowsAtOnce : 0;
  unrolled<Tile::kWarpM / kSliceRows>([&](auto which) {
    product.template to_shared<Out, which>(ptx::shared_address(slice), lane);
    __syncwarp();
#pragma unroll
    for (int first = 0; first < kSliceRows; first += kBatch * kRowsAtOnce) {
      [[maybe_unused]] Vector<Out, kPerChunk> before[kAccumulate ? kBatch : 1];
      if constexpr (kAccumulate) {
#pragma unroll
        for (int i = 0; i < kBatch; ++i) {
          if (i < rows) before[i] = load<kPerChunk>(reinterpret_cast<const Out*>(to + i * skip));
        }
      }
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const int row = first + i * kRowsAtOnce + lane / kRowChunks;
        Vector<Out, kPerChunk> sums =
            load<kPerChunk>(reinterpret_cast<const Out*>(slice + Product::template slice_offset<Out>(row, chunk)));
        if constexpr (kAccumulate) {
#pragma unroll
          for (int j = 0; j < kPerChunk; ++j) sums.values[j] += before[i].values[j];
        }
        if (i < rows) store(reinterpret_cast<Out*>(to), sums);
        to += skip;
      }
      rows -= kBatch;
    }
    __syncwarp();
  });
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
  const uint32_t left_tile = ptx::shared_address(shared), right_tile = left_tile + Tile::Left::kBytes;
  typename Tile::Product product(left_tile, right_tile, warp_m, warp_n, lane);
  typename Tile::Left left(p.left, begin, end, block_m, left_tile, thread);
  typename Tile::Right right(p.right, begin, end, block_n, right_tile, thread);

  struct Found {
    typename Tile::Left::Found left;
    typename Tile::Right::Found right;
  };
  const auto find_step = [&](Found& found) { left.find(found.left), right.find(found.right); };
  const auto copy_step = [&](uint32_t stage, const Found& found) {
    left.copy(stage, found.left), right.copy(stage, found.right);
  };
  Found found[Tile::kStages];
  unrolled<Tile::kStages>([&](auto i) { find_step(found[i]); });
  unrolled<Tile::kStages - 1>([&](auto i) {
    if (i < steps) copy_step(i * Tile::kStageBytes, found[i]);
    ptx::commit_copies();
  });
  Found& next = found[Tile::kStages - 1];

  if (steps > 0) {
    typename Tile::Product::Fragments fragments[2];
    // Stages as distances from the first. What has been read is written next.
    uint32_t reading = 0, writing = (Tile::kStages - 1) * Tile::kStageBytes;
    ptx::wait_for_copies<Tile::kStages - 2>();
    __syncthreads();
    product.template load<0>(fragments[0]);
#pragma unroll 1
    for (int step = 0; step < steps - 1; ++step) {
      unrolled<Tile::kParts>([&](auto part) {
        if constexpr (part + 1 < Tile::kParts) {
          product.template load<part + 1>(fragments[(part + 1) % 2]);
        } else {
          ptx::wait_for_copies<Tile::kStages - 2>();
          __syncthreads();
          writing = reading;
          const bool wraps = reading == Tile::kSharedBytes - Tile::kStageBytes;
          const int distance = wraps ? Tile::kStageBytes - Tile::kSharedBytes : Tile::kStageBytes;
          reading += distance;
          product.advance(distance);
          product.template load<0>(fragments[0]);
        }
        if constexpr (part == 0) {
          if (step + Tile::kStages - 1 < steps) {
            copy_step(writing, next);
            find_step(next);
          }
          ptx::commit_copies();
        }
        product.multiply(fragments[part % 2]);
      });
    }
    // The last step: as far as there are rows.
    const int rows = end - begin - (steps - 1) * Tile::kStepRows;
    unrolled<Tile::kParts>([&](auto part) {
      if (part * Tile::Product::kPartRows < rows) {
        if constexpr (part + 1 < Tile::kParts) product.template load<part + 1>(fragments[(part + 1) % 2]);
        product.multiply(fragments[part % 2]);
      }
    });
  }

  __syncthreads();  // the stages become slices
  char* slice = shared + warp * Tile::kSliceBytes;
  const int first_m = block_m + warp_m, first_n = block_n + warp_n;
  const int64_t first_element = expert * p.out_expert_stride;
  if (p.accumulate) {
    write_sums<Tile, float, true>(product, slice, static_cast<float*>(p.out) + first_element, p, first_m, first_n,
                                  lane);
  } else {
    write_sums<Tile, T, false>(product, slice, static_cast<T*>(p.out) + first_element, p, first_m, first_n, lane);
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
