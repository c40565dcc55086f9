// The products of the layer on CUDA: each goes to the engine that the plan names.
#pragma once

#include "cuda/grouped_gemm/product.h"

namespace moe::cuda {

Outcome store(const RowsProduct& product, const StoreEpilogue& epilogue, const GemmPlan& plan, Stream stream);
Outcome activate(const RowsProduct& product, const ActivateEpilogue& epilogue, const GemmPlan& plan, Stream stream);
Outcome activate_backward(const RowsProduct& product, const ActivateBackwardEpilogue& epilogue, const GemmPlan& plan,
                          Stream stream);
Outcome wgrad(const WgradProduct& product, const GemmPlan& plan, Stream stream);

// 16-byte loads fit: see GemmProblem::aligned.
bool is_aligned(DType dtype, const RowOperand& operand);
bool is_aligned(DType dtype, const WeightOperand& operand);

}  // namespace moe::cuda
