// AVX-512: eight rows by three vectors of sixteen, 24 of the 32 registers.
#define MOE_ISA avx512
#include "cpu/avx512/select.h"
#include "cpu/avx512/stream.h"
#include "cpu/avx512/vector.h"
#include "cpu/portable/vector.h"
#include "cpu/vectorized/row_dots.h"
#include "cpu/vectorized/table.h"

namespace moe::cpu {

const KernelTable& avx512_kernels() {
  using namespace avx512;
  using Float = FloatEngine<Avx512Vector, 8, 3, 48>;
  using Double = FloatEngine<NativeVector<double>, 2, 4, 16>;
  static constexpr KernelTable table = kernel_table(few_rows_kernel<float, Float>(), few_rows_kernel<bf16, Float>(),
                                                    few_rows_kernel<fp16, Float>(), gemm_kernel<double, Double>());
  return table;
}

}  // namespace moe::cpu
