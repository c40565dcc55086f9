#include "cuda/grouped_gemm/mma/rows_launch.cuh"

namespace moe::cuda {

Outcome mma::activate_backward(const RowsProduct& product, const ActivateBackwardEpilogue& epilogue,
                               const GemmPlan& plan, Stream stream) {
  return launch_rows("mma::activate_backward", product, epilogue, plan, stream);
}

}  // namespace moe::cuda
