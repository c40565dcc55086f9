#include "cuda/grouped_gemm/mma/rows_launch.cuh"

namespace moe::cuda {

Outcome mma::store(const RowsProduct& product, const StoreEpilogue& epilogue, const GemmPlan& plan, Stream stream) {
  return launch_rows("mma::store", product, epilogue, plan, stream);
}

}  // namespace moe::cuda
