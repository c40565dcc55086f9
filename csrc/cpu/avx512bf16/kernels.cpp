// AVX-512 with dot products of bfloat16 pairs. Chosen by itself only where they are fast: see cpu/isa.cpp.
#define MOE_ISA avx512bf16
#include "cpu/avx512/select.h"
#include "cpu/avx512/stream.h"
#include "cpu/avx512/swiglu.h"
#include "cpu/avx512bf16/rounded.h"
#include "cpu/avx512bf16/vector.h"
#include "cpu/portable/vector.h"
#include "cpu/vectorized/few_rows.h"
#include "cpu/vectorized/row_dots.h"
#include "cpu/vectorized/table.h"

namespace moe::cpu {

const KernelTable& avx512bf16_kernels() {
  using namespace avx512bf16;
  using Float = FloatEngine<Avx512Vector, 8, 3, 48, true>;
  using Bf16 = PairEngine<Bf16PairVector, 8, 3>;
  using Double = FloatEngine<NativeVector<double>, 2, 4, 16>;
  static constexpr GemmKernel of_pairs = gemm_kernel<bf16, Bf16>();
  static constexpr KernelTable table =
      kernel_table(few_rows_kernel<float, Float>(), with_row_dots<bf16, Float, of_pairs>(),
                   few_rows_kernel<fp16, Float>(), gemm_kernel<double, Double>());
  return table;
}

}  // namespace moe::cpu
