// Gradients of soft_mix's logits on tensor cores: the products of tokens and slots by the main loop of grouped_gemm's
// mma engine, the rest on their way out (logits_epilogue.cuh).
#include "cuda/common/launch_kernel.cuh"
#include "cuda/grouped_gemm/mma/rows_kernel.cuh"
#include "cuda/soft/logits_epilogue.cuh"
#include "cuda/soft/products.h"

namespace moe::cuda::mma {

namespace {

struct SoftLogitsLaunch {
  SoftLogits logits;
  bool quads;
  FastDivide column_blocks, row_blocks;
};

}  // namespace

template <class T, class Shape>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kBlocks)
    soft_logits_kernel(const __grid_constant__ SoftLogitsLaunch launch) {
  using Loop = MainLoop<T, Shape, true>;
  extern __shared__ __align__(128) unsigned char shared[];
  const SoftLogits& g = launch.logits;
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32;
  const uint32_t row_index = launch.column_blocks(blockIdx.x), batch = launch.row_blocks(row_index);
  const int first_slot = static_cast<int>(blockIdx.x - row_index * launch.column_blocks.divisor()) * Shape::kBlockN;
  const int first_token = static_cast<int>(row_index - batch * launch.row_blocks.divisor()) * Shape::kBlockM;
  const int num_rows = min(static_cast<int>(g.mix.num_tokens) - first_token, Shape::kBlockM);
  const int num_slots = static_cast<int>(g.mix.num_slots);

  typename Loop::Sums sums = {};
  if (g.mix.width > 0) {
    typename Loop::RowCopy tokens(static_cast<const T*>(g.tokens.data) + batch * g.tokens.batch_stride, g.tokens.stride,
                                  thread, [&](int i) { return i < num_rows ? first_token + i : -1; });
    typename Loop::WeightCopy slots(static_cast<const T*>(g.slots.data) + batch * g.slots.batch_stride, g.slots.stride,
                                    thread, [&](int i) { return first_slot + i < num_slots ? first_slot + i : -1; });
    Loop::run(sums, tokens, slots, ptx::shared_address(shared), static_cast<int>(g.mix.width), num_rows);
  }

  const int warp_row = warp / Shape::kWarpsN * Shape::kWarpRows;
  const int warp_column = warp % Shape::kWarpsN * Shape::kWarpColumns;
  for (int first = 0; first < num_rows; first += Shape::kSliceRows) {
    __syncthreads();
    if (warp_row >= first && warp_row < first + Shape::kSliceRows) {
      const int corner = (warp_row - first) * Shape::kSumsStride + warp_column;
      write_sums<Shape::kSumsStride>(sums, ptx::shared_address(shared) + corner * sizeof(float), thread % 32);
    }
    __syncthreads();
    const auto finish = [&]<class L>(L*) {
      finish_logits<L, true, Shape::kSliceRows, Shape::kBlockN, Shape::kSumsStride, Shape::kThreads>(
          g, launch.quads, batch, first_token + first, first_slot, reinterpret_cast<const float*>(shared), thread);
    };
    if (g.mix.logits_dtype == DType::kFloat32) {
      finish(static_cast<float*>(nullptr));
    } else if (g.mix.logits_dtype == DType::kBFloat16) {
      finish(static_cast<__nv_bfloat16*>(nullptr));
    } else {
      finish(static_cast<__half*>(nullptr));
    }
  }
}

namespace {

template <class T, class Shape>
Outcome launch_soft_logits(const SoftLogits& logits, Stream stream) {
  constexpr const char* kName = "soft_logits";
  const SoftMixParams& p = logits.mix;
  const int64_t column_blocks = (p.num_slots + Shape::kBlockN - 1) / Shape::kBlockN;
  const int64_t row_blocks = (p.num_tokens + Shape::kBlockM - 1) / Shape::kBlockM;
  const int64_t blocks = p.batch * row_blocks * column_blocks;
  if (blocks == 0) return {};
  if (blocks > INT32_MAX) return {Status::kUnsupported, 0, kName};
  const SoftLogitsLaunch arguments = {logits, logits_in_quads(logits), FastDivide(static_cast<uint32_t>(column_blocks)),
                                      FastDivide(static_cast<uint32_t>(row_blocks))};
  return launch(kName, soft_logits_kernel<T, Shape>, dim3(static_cast<uint32_t>(blocks)), dim3(Shape::kThreads),
                Shape::kSharedBytes, stream, arguments);
}

}  // namespace

// Large blocks read less, small ones leave fewer multiprocessors idle at the end. A large one is two small ones, which
// together take about an eighth longer.
Outcome soft_logits(const SoftLogits& logits, const Device& device, Stream stream) {
  using Large = Shape<128, 128, 2, 2, 2, 2>;
  using Small = Shape<64, 128, 2, 2, 3, 2>;
  const SoftMixParams& p = logits.mix;
  const int64_t columns = p.batch * ((p.num_slots + 127) / 128);
  const bool large = 16 * blocks_each(columns * ((p.num_tokens + 127) / 128), device) <=
                     9 * blocks_each(columns * ((p.num_tokens + 63) / 64), device);
  const auto of_type = [&]<class T>(T*) {
    return large ? launch_soft_logits<T, Large>(logits, stream) : launch_soft_logits<T, Small>(logits, stream);
  };
  return p.dtype == DType::kBFloat16 ? of_type(static_cast<__nv_bfloat16*>(nullptr))
                                     : of_type(static_cast<__half*>(nullptr));
}

}  // namespace moe::cuda::mma
