#include "cuda/grouped_gemm/grouped_gemm.h"

#include <initializer_list>

namespace moe::cuda {
namespace {

#ifdef MOE_EXT_WITHOUT_WGMMA  // a build without sm_90a has no such kernels, and no plan asks for them
#define MOE_WGMMA(call) Outcome{Status::kUnsupported, 0, "wgmma"}
#else
#define MOE_WGMMA(call) wgmma::call
#endif

// engine::call of the plan's family.
#define MOE_BY_FAMILY(call)   \
  switch (plan.family) {      \
    case Family::kMma:        \
      return mma::call;       \
    case Family::kWgmma:      \
      return MOE_WGMMA(call); \
    case Family::kSimt:       \
      break;                  \
  }                           \
  return simt::call

constexpr int64_t kVectorBytes = 16;

// Of two strides one is 1; everything else is made of whole vectors.
bool vectors(DType dtype, const void* data, int64_t stride, int64_t other_stride,
             std::initializer_list<int64_t> outer_strides) {
  const auto whole = [&](int64_t elements) { return elements * size_of(dtype) % kVectorBytes == 0; };
  if (reinterpret_cast<uintptr_t>(data) % kVectorBytes != 0) return false;
  for (const int64_t outer : outer_strides) {
    if (!whole(outer)) return false;
  }
  return (stride == 1 && whole(other_stride)) || (other_stride == 1 && whole(stride));
}

}  // namespace

bool is_aligned(DType dtype, const RowOperand& operand) {
  return operand.k_stride == 1 && vectors(dtype, operand.data, 1, operand.stride, {});
}

bool is_aligned(DType dtype, const WeightOperand& operand) {
  // Expanded matrices are left to the engine that takes any stride.
  if (operand.n_stride == 0 || operand.k_stride == 0) return false;
  return vectors(dtype, operand.data, operand.n_stride, operand.k_stride, {operand.expert_stride});
}

Outcome store(const RowsProduct& product, const StoreEpilogue& epilogue, const GemmPlan& shared_plan, Stream stream) {
  const GemmPlan plan = for_columns(shared_plan, product.n);
  MOE_BY_FAMILY(store(product, epilogue, plan, stream));
}

Outcome activate(const RowsProduct& product, const ActivateEpilogue& epilogue, const GemmPlan& shared_plan,
                 Stream stream) {
  const GemmPlan plan = for_columns(shared_plan, product.n);
  MOE_BY_FAMILY(activate(product, epilogue, plan, stream));
}

Outcome activate_backward(const RowsProduct& product, const ActivateBackwardEpilogue& epilogue,
                          const GemmPlan& shared_plan, Stream stream) {
  const GemmPlan plan = for_columns(shared_plan, product.n);
  MOE_BY_FAMILY(activate_backward(product, epilogue, plan, stream));
}

Outcome wgrad(const WgradProduct& product, const GemmPlan& plan, Stream stream) {
  MOE_BY_FAMILY(wgrad(product, plan, stream));
}

#undef MOE_BY_FAMILY
#undef MOE_WGMMA

}  // namespace moe::cuda
