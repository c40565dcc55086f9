// wgmma: the gradient before the activation, from rows x weight.
#include "cuda/grouped_gemm/wgmma/rows_launch.cuh"

namespace moe::cuda::wgmma {

Outcome activate_backward(const RowsProduct& product, const ActivateBackwardEpilogue& epilogue, const GemmPlan& plan,
                          Stream stream) {
  return launch_rows("wgmma::activate_backward", product, epilogue, plan, stream);
}

}  // namespace moe::cuda::wgmma
