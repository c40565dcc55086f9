// The one place that decides which instruction set the CPU kernels use.
//
// The wheel carries every variant; the best one that the processor, the operating system and the compiler allow is
// picked once, at the first call (avx512bf16 only where it beats avx512).
// MOE_EXT_CPU_ISA=portable|avx2|avx512|avx512bf16|amx pins one.
#pragma once

#include "cpu/kernel_table.h"

namespace moe::cpu {

enum class Isa : int { kPortable, kAvx2, kAvx512, kAvx512Bf16, kAmx };
inline constexpr int kNumIsas = 5;

const char* isa_name(Isa isa);
// Null for a name that is no ISA's.
const Isa* isa_from_name(const char* name);

bool isa_compiled(Isa isa);
// Compiled in, and this machine may run it.
bool isa_available(Isa isa);

Isa current_isa();
// False, and nothing changes, when the ISA is not available.
bool set_current_isa(Isa isa);
// How this processor reads rows of a matrix fastest: Intel's side by side, each fetched some lines ahead; others one
// after the other, their own prefetchers ahead. Both ways give the same bits, so that it may change at any time.
bool reads_side_by_side();
void set_reads_side_by_side(bool side_by_side);
// Why MOE_EXT_CPU_ISA could not be followed, or null.
const char* isa_environment_error();

const KernelTable& kernels();

}  // namespace moe::cpu
