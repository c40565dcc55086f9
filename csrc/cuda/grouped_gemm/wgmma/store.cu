// wgmma: out = rows x weight + bias.
#include "cuda/grouped_gemm/wgmma/rows_launch.cuh"

namespace moe::cuda::wgmma {

Outcome store(const RowsProduct& product, const StoreEpilogue& epilogue, const GemmPlan& plan, Stream stream) {
  return launch_rows("wgmma::store", product, epilogue, plan, stream);
}

}  // namespace moe::cuda::wgmma
