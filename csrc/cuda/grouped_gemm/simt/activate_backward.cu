#include "cuda/grouped_gemm/simt/rows.cuh"

namespace moe::cuda::simt {

Outcome activate_backward(const RowsProduct& product, const ActivateBackwardEpilogue& epilogue, const GemmPlan& plan,
                          Stream stream) {
  return run_rows("simt::activate_backward", product, epilogue, plan, stream);
}

}  // namespace moe::cuda::simt
