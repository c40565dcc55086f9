#include "cuda/grouped_gemm/mma/rows_launch.cuh"

namespace moe::cuda {

Outcome mma::activate(const RowsProduct& product, const ActivateEpilogue& epilogue, const GemmPlan& plan,
                      Stream stream) {
  return launch_rows("mma::activate", product, epilogue, plan, stream);
}

}  // namespace moe::cuda
