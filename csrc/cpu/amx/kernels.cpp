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
  static constexpr GemmKernel of_float = split_gemm_kernel<float, 3>(), of_fp16 = split_gemm_kernel<fp16, 2>();
  using FloatDots = FloatEngine<Avx512Vector, 8, 2, SplitEngine<3>::kGroup>;
  using Fp16Dots = FloatEngine<Avx512Vector, 8, 2, SplitEngine<2>::kGroup>;
  // Few rows of bfloat16 take tiles: they read memory as fast, and need nothing widened.
  static constexpr KernelTable table =
      kernel_table(with_row_dots<float, FloatDots, of_float>(), gemm_kernel<bf16, AmxEngine>(),
                   with_row_dots<fp16, Fp16Dots, of_fp16>(), gemm_kernel<double, Double>());
  return table;
}

}  // namespace moe::cpu
