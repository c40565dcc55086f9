// AVX-512: eight rows by three vectors of sixteen, 24 of the 32 registers.
#define MOE_ISA avx512
#include "cpu/avx512/select.h"
#include "cpu/avx512/stream.h"
#include "cpu/avx512/vector.h"
#include "cpu/portable/vector.h"
#include "cpu/vectorized/few_rows.h"
#include "cpu/vectorized/row_dots.h"
#include "cpu/vectorized/table.h"

namespace moe::cpu {

const KernelTable& avx512_kernels() {
  using namespace avx512;
  using Float = FloatEngine<Avx512Vector, 8, 3, 48>;
  using Double = FloatEngine<NativeVector<double>, 2, 4, 16>;
  static constexpr GemmKernel of_floats = float_gemm_kernel<float, Float>();
  static constexpr KernelTable table = kernel_table(with_row_dots<Float, of_floats>(), float_gemm_kernel<bf16, Float>(),
                                                    float_gemm_kernel<fp16, Float>(), gemm_kernel<double, Double>());
  return table;
}

}  // namespace moe::cpu
