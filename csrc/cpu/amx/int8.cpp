// int8 products on AMX tiles.
#define MOE_ISA amx_int8
#include "cpu/amx/int8_engine.h"

namespace moe::cpu {

const Int8Kernels& amx_int8_kernels() {
  static constexpr Int8Kernels table = amx_int8::int8_table<amx_int8::AmxInt8Engine>();
  return table;
}

}  // namespace moe::cpu
