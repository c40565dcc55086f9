#include "cuda/grouped_gemm/simt/rows.cuh"

namespace moe::cuda::simt {

Outcome activate(const RowsProduct& product, const ActivateEpilogue& epilogue, const GemmPlan& plan, Stream stream) {
  return run_rows("simt::activate", product, epilogue, plan, stream);
}

}  // namespace moe::cuda::simt
