// Weight gradients of bfloat16 data.
#include "cuda/grouped_gemm/mma/wgrad_kernel.cuh"

namespace moe::cuda::mma {

Outcome wgrad_bfloat16(const WgradArguments& arguments, int64_t num_experts, const GemmPlan& plan, Stream stream) {
  using T = __nv_bfloat16;
  return launch_planned<WgradTile<T, 128, 256, 64, 64, 64, 3, 1>, WgradTile<T, 128, 256, 64, 64, 32, 4, 1>,
                        WgradTile<T, 128, 128, 64, 64, 64, 2, 2>, WgradTile<T, 128, 128, 64, 64, 32, 3, 2>,
                        WgradTile<T, 64, 128, 32, 64, 32, 4, 3>>(arguments, num_experts, plan, stream);
}

}  // namespace moe::cuda::mma
