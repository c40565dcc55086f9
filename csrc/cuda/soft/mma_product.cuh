// out[b, i] = sum over j of w(i, j) right[b, j] by mma.sync, the weights formed on their way (formed_weights.cuh).
//
// A block has kBlockM x kBlockN of a sequence's out and goes through j in steps of 32. Rows of `right` come by cp.async
// into a ring of three stages. Weights go through two buffers: while a step is multiplied, the next one's weights are
// formed and the logits of the one after are under way. Half of the warps of a large block form weights first and
// multiply then, the others multiply first, so that tensor cores and exponentials work side by side.
//
// Each output is one chain of sums in float32, j ascending in steps of 16, whatever the shape of the block.
#pragma once

#include "cuda/common/fast_divide.h"
#include "cuda/common/launch_kernel.cuh"
#include "cuda/common/unrolled.cuh"
#include "cuda/ptx/ldmatrix.cuh"
#include "cuda/ptx/mma.cuh"
#include "cuda/soft/formed_weights.cuh"
#include "cuda/soft/products.h"

namespace moe::cuda::mma {

struct SoftProductLaunch {
  SoftProduct product;
  bool quads;
  FastDivide column_blocks, row_blocks;
};

template <int kBlockM_, int kBlockN_, int kWarpM_, int kBlocks_>
struct SoftShape {
  static constexpr int kBlockM = kBlockM_, kBlockN = kBlockN_, kWarpM = kWarpM_, kWarpN = 64;
  static constexpr int kBlocks = kBlocks_;  // that registers should suffice for on a multiprocessor
  static constexpr int kWarpsN = kBlockN / kWarpN, kThreads = kBlockM / kWarpM * kWarpsN * 32;
  static constexpr int kStep = 32, kStages = 3;
  // Rows of right, and of the finished tile, in shared memory; what is added keeps 8 rows in different banks.
  static constexpr int kRightPitch = kBlockN * 2 + 16, kRightBytes = kStep * kRightPitch;
  static constexpr int kSlicePitch = kWarpN * 2 + 16, kSliceRows = 32, kSliceBytes = kSliceRows * kSlicePitch;

  template <class T, bool kTokensInner>
  using Left = FormedWeights<T, kTokensInner ? kStep : kBlockM, kTokensInner ? kBlockM : kStep, kThreads, kTokensInner>;
  template <class T, bool kTokensInner>
  static constexpr int kSharedBytes = kStages * kRightBytes + 2 * Left<T, kTokensInner>::kBytes;
};

// The copies of 16 bytes of `right` that a thread makes in every step.
template <class T, class Shape>
class RightCopy {
  static constexpr int kChunks = Shape::kBlockN / 8, kLines = Shape::kThreads / kChunks;
  static constexpr int kCount = Shape::kStep / kLines;
  static_assert(kCount * kLines == Shape::kStep);

 public:
  __device__ RightCopy(const T* data, int64_t stride, int num_rows, int first_column, int num_columns, int thread)
      : line_(thread / kChunks), line_stride_(kLines * stride) {
    const int column = first_column + thread % kChunks * 8;
    rows_ = column < num_columns ? num_rows : 0;
    to_ = line_ * Shape::kRightPitch + thread % kChunks * 16;
    from_ = data + line_ * stride + column;
  }

  __device__ void next(uint32_t stage) {
    unrolled<kCount>([&](auto i) {
      ptx::copy_async_or_zero<i * kLines * Shape::kRightPitch>(stage + to_, from_, line_ + i * kLines < rows_);
      from_ += line_stride_;
    });
    line_ += Shape::kStep;
  }

 private:
  int line_, rows_;  // where the next step's begin, and end
  uint32_t to_;
  int64_t line_stride_;
  const T* from_;
};

// A warp's part of the tile.
template <class T, class Shape, bool kTokensInner>
class SoftSums {
  static constexpr int kTilesM = Shape::kWarpM / 16, kTilesN = Shape::kWarpN / 8;
  static constexpr int kLeftPitch = Shape::template Left<T, kTokensInner>::kPitch;

 public:
  struct Fragments {
    uint32_t left[kTilesM][4];
    uint32_t right[kTilesN / 2][4];
  };

  __device__ SoftSums(int first_m, int first_n, int lane) {
    left_ = kTokensInner ? (lane / 16 * 8 + lane % 8) * kLeftPitch + (first_m + lane / 8 % 2 * 8) * 2
                         : (first_m + lane % 16) * kLeftPitch + lane / 16 * 16;
    right_ = lane % 16 * Shape::kRightPitch + (first_n + lane / 16 * 8) * 2;
  }

  // kPart: which 16 of the step.
  template <int kPart>
  __device__ void load(Fragments& to, uint32_t left, uint32_t right) const {
    unrolled<kTilesM>([&](auto i) {
      if constexpr (kTokensInner) {
        ptx::load_matrices_transposed<kPart * 16 * kLeftPitch + i * 32>(to.left[i], left + left_);
      } else {
        ptx::load_matrices<kPart * 32 + i * 16 * kLeftPitch>(to.left[i], left + left_);
      }
    });
    unrolled<kTilesN / 2>([&](auto j) {
      ptx::load_matrices_transposed<kPart * 16 * Shape::kRightPitch + j * 32>(to.right[j], right + right_);
    });
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

  // Slice kWhich of the sums, rounded, to shared address `slice`.
  template <int kWhich>
  __device__ void to_shared(uint32_t slice, int lane) const {
    const uint32_t to = slice + lane / 4 * Shape::kSlicePitch + lane % 4 * 4;
    unrolled<Shape::kSliceRows / 16>([&](auto i) {
      unrolled<kTilesN>([&](auto j) {
        const float (&sums)[4] = sums_[kWhich * (Shape::kSliceRows / 16) + i][j];
        ptx::store_shared<i * 16 * Shape::kSlicePitch + j * 16>(to, pack<T>(sums[0], sums[1]));
        ptx::store_shared<(i * 16 + 8) * Shape::kSlicePitch + j * 16>(to, pack<T>(sums[2], sums[3]));
      });
    });
  }

 private:
  uint32_t left_, right_;
  float sums_[kTilesM][kTilesN][4] = {};
};

template <class T, class Shape, bool kTokensInner>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kBlocks)
    soft_product_kernel(const __grid_constant__ SoftProductLaunch launch) {
  using Left = typename Shape::template Left<T, kTokensInner>;
  using Sums = SoftSums<T, Shape, kTokensInner>;
  extern __shared__ __align__(128) unsigned char shared[];
  const SoftProduct& product = launch.product;
  const SoftMixParams& mix = product.mix;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;

  // Blocks that share logits are neighbours.
  const uint32_t row_index = launch.column_blocks(blockIdx.x), batch = launch.row_blocks(row_index);
  const int block_n = static_cast<int>(blockIdx.x - row_index * launch.column_blocks.divisor()) * Shape::kBlockN;
  const int block_m = static_cast<int>(row_index - batch * launch.row_blocks.divisor()) * Shape::kBlockM;
  const int num_rows = static_cast<int>(kTokensInner ? mix.num_slots : mix.num_tokens);
  const int num_inner = static_cast<int>(kTokensInner ? mix.num_tokens : mix.num_slots);
  const int width = static_cast<int>(mix.width);
  const int steps = (num_inner + Shape::kStep - 1) / Shape::kStep;
  const int warp_m = warp / Shape::kWarpsN * Shape::kWarpM, warp_n = warp % Shape::kWarpsN * Shape::kWarpN;

  unsigned char* const formed = shared + Shape::kStages * Shape::kRightBytes;
  const uint32_t left_tiles = ptx::shared_address(formed), right_tiles = ptx::shared_address(shared);
  Sums sums(warp_m, warp_n, lane);
  if (steps > 0) {
    Left left(mix, batch, block_m, launch.quads, thread);
    RightCopy<T, Shape> right(static_cast<const T*>(product.right.data) + batch * product.right.batch_stride,
                              product.right.stride, num_inner, block_n, width, thread);
    left.load();
    right.next(right_tiles);
    ptx::commit_copies();
    left.store(formed);
    left.load();
    if (steps > 1) right.next(right_tiles + Shape::kRightBytes);
    ptx::commit_copies();
    // Warps 4 apart share a scheduler.
    const bool forms_first = Shape::kThreads > 128 && warp / 4 % 2 == 0;
    uint32_t reading = right_tiles, writing = right_tiles + 2 * Shape::kRightBytes;
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
      ptx::wait_for_copies<Shape::kStages - 2>();
      __syncthreads();
      const int next = (step + 1) % 2 * Left::kBytes;
      const auto form_next = [&] {
        if (step + 1 < steps) left.store(formed + next);
        if (step + 2 < steps) left.load();
      };
      if (step + 2 < steps) right.next(writing);
      ptx::commit_copies();
      if (forms_first) form_next();
      typename Sums::Fragments first, second;
      sums.template load<0>(first, left_tiles + step % 2 * Left::kBytes, reading);
      sums.template load<1>(second, left_tiles + step % 2 * Left::kBytes, reading);
      sums.multiply(first);
      if (!forms_first) form_next();
      sums.multiply(second);
      writing = reading;
      reading = reading == right_tiles + 2 * Shape::kRightBytes ? right_tiles : reading + Shape::kRightBytes;
    }
    __syncthreads();  // the stages become slices
  }

  unsigned char* const slice = shared + warp * Shape::kSliceBytes;
  const int column = block_n + warp_n + lane % 8 * 8;
  T* const out = static_cast<T*>(product.out) + int64_t{batch} * num_rows * width + column;
  unrolled<Shape::kWarpM / Shape::kSliceRows>([&](auto which) {
    sums.template to_shared<which>(ptx::shared_address(slice), lane);
    __syncwarp();
#pragma unroll
    for (int i = 0; i < Shape::kSliceRows; i += 4) {
      const int row = block_m + warp_m + which * Shape::kSliceRows + i + lane / 8;
      const uint4 values = *reinterpret_cast<const uint4*>(slice + (i + lane / 8) * Shape::kSlicePitch + lane % 8 * 16);
      if (row < num_rows && column < width) {
        *reinterpret_cast<uint4*>(out + int64_t{row} * width) = values;
      }
    }
    __syncwarp();
  });
}

template <class T, class Shape, bool kTokensInner>
Outcome launch_soft_product(const SoftProduct& product, Stream stream) {
  static_assert(Shape::kThreads / 32 * Shape::kSliceBytes <= Shape::template kSharedBytes<T, kTokensInner>);
  constexpr const char* kName = "soft_product";
  const int64_t column_blocks = (product.mix.width + Shape::kBlockN - 1) / Shape::kBlockN;
  const int64_t row_blocks = (product.rows() + Shape::kBlockM - 1) / Shape::kBlockM;
  const int64_t blocks = product.mix.batch * row_blocks * column_blocks;
  if (blocks == 0) return {};
  if (blocks > INT32_MAX) return {Status::kUnsupported, 0, kName};
  const SoftProductLaunch arguments = {product, logits_in_quads(product.mix),
                                       FastDivide(static_cast<uint32_t>(column_blocks)),
                                       FastDivide(static_cast<uint32_t>(row_blocks))};
  return launch(kName, soft_product_kernel<T, Shape, kTokensInner>, dim3(static_cast<uint32_t>(blocks)),
                dim3(Shape::kThreads), Shape::template kSharedBytes<T, kTokensInner>, stream, arguments);
}

// Large blocks form a weight for 256 columns, small ones for 128, and so twice as often; but fewer multiprocessors are
// idle at the end. A large one is four small ones, which together take about a quarter longer.
template <class T>
Outcome soft_product_of(const SoftProduct& product, const Device& device, Stream stream) {
  using Large = SoftShape<128, 256, 64, 1>;
  using Small = SoftShape<64, 128, 32, 3>;
  const auto blocks = [&]<class Shape>(const Shape*) {
    return product.mix.batch * ((product.rows() + Shape::kBlockM - 1) / Shape::kBlockM) *
           ((product.mix.width + Shape::kBlockN - 1) / Shape::kBlockN);
  };
  const bool large = 16 * blocks_each(blocks(static_cast<Large*>(nullptr)), device) <=
                     5 * blocks_each(blocks(static_cast<Small*>(nullptr)), device);
  if (product.tokens_inner) {
    return large ? launch_soft_product<T, Large, true>(product, stream)
                 : launch_soft_product<T, Small, true>(product, stream);
  }
  return large ? launch_soft_product<T, Large, false>(product, stream)
               : launch_soft_product<T, Small, false>(product, stream);
}

}  // namespace moe::cuda::mma
