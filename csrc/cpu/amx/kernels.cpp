// AMX tiles for bfloat16, and for float32 and float16 in parts; AVX-512 for the rest.
#define MOE_ISA amx
#include "cpu/amx/gemm.h"
#include "cpu/amx/split_gemm.h"
#include "cpu/avx512/select.h"
#include "cpu/avx512/stream.h"
#include "cpu/portable/vector.h"
#include "cpu/vectorized/engines.h"
#include "cpu/vectorized/row_dots.h"
#include "cpu/vectorized/table.h"

namespace moe::cpu {

const KernelTable& amx_kernels() {
  using namespace amx;
  using Double = FloatEngine<NativeVector<double>, 2, 4, 16>;
  static constexpr GemmKernel split_float = split_gemm_kernel<float, 3>();
  using Dots = FloatEngine<Avx512Vector, 8, 2, SplitEngine<3>::kGroup>;
  static constexpr KernelTable table = kernel_table(with_row_dots<Dots, split_float>(), gemm_kernel<bf16, AmxEngine>(),
                                                    split_gemm_kernel<fp16, 2>(), gemm_kernel<double, Double>());
  return table;
}

}  // namespace moe::cpu
