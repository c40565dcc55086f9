#pragma once

#include <functional>

#include "cpu/gemm.h"
#include "cpu/parallel.h"
#include "moe/grouped_gemm.h"

namespace moe::cpu {

Status grouped_gemm(const GroupedGemmParams& params, const Parallel& parallel);
Status grouped_gemm_wgrad(const GroupedGemmWgradParams& params, const Parallel& parallel);

// A product over all experts, to be cut into jobs. describe(expert) gives the operands and the epilogue of one expert
// as a job that covers all its rows and columns; jobs that share one expert get their own rows and columns of it.
struct GroupedProduct {
  DType dtype;
  int64_t num_experts;
  bool batch_invariant;  // the order of a row's sums does not depend on how many rows its expert has
  std::function<GemmJob(int64_t expert)> describe;
};
Status run_grouped(const GroupedProduct& product, const Parallel& parallel);

}  // namespace moe::cpu
