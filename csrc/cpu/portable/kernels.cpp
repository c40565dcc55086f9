// Portable C++: the compiler's own vector types, sixteen bytes wide, on any machine.
#define MOE_ISA portable
#include "cpu/portable/select.h"
#include "cpu/portable/stream.h"
#include "cpu/portable/transpose.h"
#include "cpu/portable/vector.h"
#include "cpu/vectorized/few_rows.h"
#include "cpu/vectorized/table.h"

namespace moe::cpu {

const KernelTable& portable_kernels() {
  using namespace portable;
  using Float = FloatEngine<NativeVector<float>, 2, 4, 32>;
  using Double = FloatEngine<NativeVector<double>, 2, 4, 16>;
  static constexpr KernelTable table = kernel_table(float_gemm_kernel<float, Float>(), float_gemm_kernel<bf16, Float>(),
                                                    float_gemm_kernel<fp16, Float>(), gemm_kernel<double, Double>());
  return table;
}

}  // namespace moe::cpu
