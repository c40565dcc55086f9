// noise: a thread makes one block of four numbers and stores them as one. Contract: moe/noise.h.
#include "cuda/noise/noise.h"

#include "cuda/common/launch_kernel.cuh"
#include "cuda/noise/distributions.cuh"

namespace moe::cuda {

namespace {

constexpr int kThreads = 256;

template <NoiseKind kKind>
__global__ void __launch_bounds__(kThreads) noise_kernel(const int64_t* seed, float* out, int64_t count) {
  const int64_t block = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t first = block * kNoiseBlock;
  if (first >= count) return;
  const float4 values = noise_details::distributed<kKind>(
      noise_details::philox(static_cast<uint64_t>(*seed), static_cast<uint64_t>(block)));
  if (first + kNoiseBlock <= count) {
    *reinterpret_cast<float4*>(out + first) = values;
    return;
  }
  out[first] = values.x;
  if (first + 1 < count) out[first + 1] = values.y;
  if (first + 2 < count) out[first + 2] = values.z;
}

}  // namespace

Outcome noise(const NoiseParams& p, Stream stream) {
  constexpr int64_t kMostBlocks = INT32_MAX;
  const int64_t blocks = (p.count + kThreads * kNoiseBlock - 1) / (kThreads * kNoiseBlock);
  if (p.count < 0 || blocks > kMostBlocks) return {Status::kInvalidArgument, 0, "noise"};
  const auto kernel = p.kind == NoiseKind::kUniform  ? noise_kernel<NoiseKind::kUniform>
                      : p.kind == NoiseKind::kNormal ? noise_kernel<NoiseKind::kNormal>
                                                     : noise_kernel<NoiseKind::kGumbel>;
  return launch("noise", kernel, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), 0, stream, p.seed, p.out,
                p.count);
}

}  // namespace moe::cuda
