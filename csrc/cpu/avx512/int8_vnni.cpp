// int8 products on AVX-512 with VNNI.
#define MOE_ISA avx512vnni_int8
#include "cpu/avx512/int8_vnni.h"

namespace moe::cpu {

const Int8Kernels& avx512vnni_int8_kernels() {
  static constexpr Int8Kernels table =
      avx512vnni_int8::int8_table<avx512vnni_int8::Int8DotEngine<avx512vnni_int8::VnniVector>>();
  return table;
}

}  // namespace moe::cpu
