#include "cuda/grouped_gemm/simt/rows.cuh"

namespace moe::cuda::simt {

Outcome store(const RowsProduct& product, const StoreEpilogue& epilogue, const GemmPlan& plan, Stream stream) {
  return run_rows("simt::store", product, epilogue, plan, stream);
}

}  // namespace moe::cuda::simt
