// AVX2 with fused multiply-add: six rows by two vectors of eight leave one register for the broadcast.
#define MOE_ISA avx2
#include "cpu/avx2/select.h"
#include "cpu/avx2/stream.h"
#include "cpu/avx2/vector.h"
#include "cpu/portable/vector.h"
#include "cpu/vectorized/row_dots.h"
#include "cpu/vectorized/table.h"

namespace moe::cpu {

const KernelTable& avx2_kernels() {
  using namespace avx2;
  using Float = FloatEngine<Avx2Vector, 6, 2, 48>;
  using Double = FloatEngine<NativeVector<double>, 2, 4, 16>;
  static constexpr KernelTable table = kernel_table(few_rows_kernel<float, Float>(), few_rows_kernel<bf16, Float>(),
                                                    few_rows_kernel<fp16, Float>(), gemm_kernel<double, Double>());
  return table;
}

}  // namespace moe::cpu
