// Portable C++: the compiler's own vector types, sixteen bytes wide, on any machine.
#define MOE_ISA portable
#include "cpu/portable/transpose.h"
#include "cpu/portable/vector.h"
#include "cpu/vectorized/engines.h"
#include "cpu/vectorized/table.h"

namespace moe::cpu {

const KernelTable& portable_kernels() {
  using namespace portable;
  using Float = FloatEngine<NativeVector<float>, 2, 4, 32>;
  using Bf16 = Float;
  using Double = FloatEngine<NativeVector<double>, 2, 4, 16>;
  static constexpr KernelTable table = kernel_table(gemm_kernel<float, Float>(), gemm_kernel<bf16, Bf16>(),
                                                    gemm_kernel<fp16, Float>(), gemm_kernel<double, Double>());
  return table;
}

}  // namespace moe::cpu
