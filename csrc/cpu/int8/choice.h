// Which kernels for int8 weights the instruction set in use means.
#pragma once

#include "cpu/int8_kernels.h"

namespace moe::cpu {

// Those of current_isa(), with its instructions for products of int8 (VNNI, AMX-int8) where the processor has them.
const Int8Kernels& int8_kernels();

// Name of the kernels that int8_kernels() gives: an instruction set, or "avx512vnni".
const char* int8_kernels_name();

// False: do without instructions for products of int8, as on processors that lack them.
void allow_int8_instructions(bool allowed);

}  // namespace moe::cpu
