// Weight gradients of float32 data, each factor rounded to tf32.
#include "cuda/grouped_gemm/mma/wgrad_kernel.cuh"

namespace moe::cuda::mma {

Outcome wgrad_tf32(const WgradArguments& arguments, int64_t num_experts, const GemmPlan& plan, Stream stream) {
  return launch_planned<WgradTile<float, 128, 128, 64, 64, 16, 3, 2>>(arguments, num_experts, plan, stream);
}

}  // namespace moe::cuda::mma
