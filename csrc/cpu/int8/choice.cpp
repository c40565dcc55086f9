#include "cpu/int8/choice.h"

#include <atomic>

#include "cpu/isa.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace moe::cpu {

namespace {

std::atomic<bool> allowed = true;

struct Int8Instructions {
  bool avx512vnni = false, amx = false;

  Int8Instructions() {
#if defined(__x86_64__)
    unsigned eax, ebx, ecx, edx;
    if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return;
    avx512vnni = (ecx & (1u << 11)) != 0;
    amx = avx512vnni && (edx & (1u << 25)) != 0;
#endif
  }
};

struct Named {
  const char* name;
  const Int8Kernels* kernels;
};

Named chosen() {
  static const Int8Instructions instructions;
  [[maybe_unused]] const bool allow = allowed.load(std::memory_order_relaxed);
  // Registers and permissions are those that the instruction set in use needs anyway.
  switch (current_isa()) {
#if MOE_ISA_AMX
    case Isa::kAmx:
      if (allow && instructions.amx) return {"amx", &amx_int8_kernels()};
      [[fallthrough]];
#endif
#if MOE_ISA_AVX512
    case Isa::kAvx512Bf16:
    case Isa::kAvx512:
      if (allow && instructions.avx512vnni) return {"avx512vnni", &avx512vnni_int8_kernels()};
      return {"avx512", &avx512_int8_kernels()};
#endif
#if MOE_ISA_AVX2
    case Isa::kAvx2:
      return {"avx2", &avx2_int8_kernels()};
#endif
    default:
      return {"portable", &portable_int8_kernels()};
  }
}

}  // namespace

const Int8Kernels& int8_kernels() { return *chosen().kernels; }

const char* int8_kernels_name() { return chosen().name; }

void allow_int8_instructions(bool allow) { allowed.store(allow, std::memory_order_relaxed); }

}  // namespace moe::cpu
