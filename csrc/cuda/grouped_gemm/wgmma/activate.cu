// wgmma: the activation of rows x weight + bias.
#include "cuda/grouped_gemm/wgmma/rows_launch.cuh"

namespace moe::cuda::wgmma {

Outcome activate(const RowsProduct& product, const ActivateEpilogue& epilogue, const GemmPlan& plan, Stream stream) {
  return launch_rows("wgmma::activate", product, epilogue, plan, stream);
}

}  // namespace moe::cuda::wgmma
