// AMX tiles for bfloat16, AVX-512 for the rest.
#define MOE_ISA amx
#include "cpu/amx/engine.h"
#include "cpu/amx/gemm.h"
#include "cpu/avx512/select.h"
#include "cpu/portable/vector.h"
#include "cpu/vectorized/engines.h"
#include "cpu/vectorized/table.h"

namespace moe::cpu {

const KernelTable& amx_kernels() {
  using namespace amx;
  using Float = FloatEngine<Avx512Vector, 8, 3, 48>;
  using Bf16 = AmxEngine;
  using Double = FloatEngine<NativeVector<double>, 2, 4, 16>;
  static constexpr KernelTable table = kernel_table<Float, Bf16, Double>();
  return table;
}

}  // namespace moe::cpu
