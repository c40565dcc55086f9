#include "cpu/isa.h"

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <string>

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace moe::cpu {

namespace {

constexpr const char* kNames[kNumIsas] = {"portable", "avx2", "avx512", "avx512bf16", "amx"};

#if defined(__x86_64__)

// What the operating system saves and restores for a process (XCR0). An instruction set is usable only if its
// registers are among it, whatever cpuid says.
__attribute__((target("xsave"))) uint64_t enabled_state() {
  unsigned eax, ebx, ecx, edx;
  if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || (ecx & bit_OSXSAVE) == 0) return 0;
  return static_cast<uint64_t>(__builtin_ia32_xgetbv(0));
}

constexpr uint64_t kAvxState = 0x6;       // xmm and ymm
constexpr uint64_t kAvx512State = 0xe6;   // and opmask, both halves of zmm
constexpr uint64_t kTileState = 0x60000;  // tile configuration and tile data

bool has_state(uint64_t state) { return (enabled_state() & state) == state; }

bool has_avx512bf16() {
  unsigned eax, ebx, ecx, edx;
  return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax & (1u << 5)) != 0;
}

bool has_amx_bf16() {
  unsigned eax, ebx, ecx, edx;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return false;
  constexpr unsigned kAmxBf16 = 1u << 22, kAmxTile = 1u << 24;
  return (edx & kAmxBf16) != 0 && (edx & kAmxTile) != 0;
}

// Linux hands out the large tile registers on request only, once for all threads of the process.
bool tiles_granted() {
#if defined(__linux__) && defined(SYS_arch_prctl)
  constexpr int kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr int kTileData = 18;               // XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

bool machine_has(Isa isa) {
  __builtin_cpu_init();
  switch (isa) {
    case Isa::kPortable:
      return true;
    case Isa::kAvx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c") &&
             has_state(kAvxState);
    case Isa::kAvx512:
      return machine_has(Isa::kAvx2) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && has_state(kAvx512State);
    case Isa::kAvx512Bf16:
      return machine_has(Isa::kAvx512) && has_avx512bf16();
    case Isa::kAmx:
      return machine_has(Isa::kAvx512Bf16) && has_amx_bf16() && has_state(kTileState) && tiles_granted();
  }
  return false;
}

bool is_intel() {
  __builtin_cpu_init();
  return __builtin_cpu_is("intel");
}

#else

bool machine_has(Isa isa) { return isa == Isa::kPortable; }
bool is_intel() { return false; }

#endif

// Intel's cores multiply pairs of bfloat16 at half the rate at which they multiply and add floats, so bfloat16 that is
// widened while it is packed is faster there. AMD's take pairs at full rate.
bool pairs_are_fast() { return !is_intel(); }

std::atomic<bool>& side_by_side() {
  static std::atomic<bool> instance = is_intel();
  return instance;
}

// Null for what this build lacks.
const KernelTable* table_of(Isa isa) {
  switch (isa) {
    case Isa::kPortable:
      return &portable_kernels();
#if MOE_ISA_AVX2
    case Isa::kAvx2:
      return &avx2_kernels();
#endif
#if MOE_ISA_AVX512
    case Isa::kAvx512:
      return &avx512_kernels();
#endif
#if MOE_ISA_AVX512BF16
    case Isa::kAvx512Bf16:
      return &avx512bf16_kernels();
#endif
#if MOE_ISA_AMX
    case Isa::kAmx:
      return &amx_kernels();
#endif
    default:
      return nullptr;
  }
}

// Everything that is found out once.
struct Choice {
  bool available[kNumIsas];
  std::string error;
  std::atomic<Isa> current;

  Choice() {
    Isa best = Isa::kPortable;
    for (int i = 0; i < kNumIsas; ++i) {
      const Isa isa = static_cast<Isa>(i);
      available[i] = isa_compiled(isa) && machine_has(isa);
      if (available[i] && (isa != Isa::kAvx512Bf16 || pairs_are_fast())) best = isa;
    }
    current = best;
    const char* pinned = std::getenv("MOE_EXT_CPU_ISA");
    if (pinned == nullptr || *pinned == '\0') return;
    const Isa* isa = isa_from_name(pinned);
    if (isa != nullptr && available[static_cast<int>(*isa)]) {
      current = *isa;
      return;
    }
    error = std::string("MOE_EXT_CPU_ISA is '") + pinned + "', which " +
            (isa == nullptr        ? "is no instruction set that moe_ext knows"
             : !isa_compiled(*isa) ? "this build of moe_ext was compiled without"
                                   : "this machine cannot run") +
            "; available:";
    for (int i = 0; i < kNumIsas; ++i) {
      if (available[i]) error += std::string(" ") + kNames[i];
    }
  }
};

Choice& choice() {
  static Choice instance;
  return instance;
}

}  // namespace

const char* isa_name(Isa isa) { return kNames[static_cast<int>(isa)]; }

const Isa* isa_from_name(const char* name) {
  static constexpr Isa kIsas[kNumIsas] = {Isa::kPortable, Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Bf16, Isa::kAmx};
  for (const Isa& isa : kIsas) {
    if (std::strcmp(isa_name(isa), name) == 0) return &isa;
  }
  return nullptr;
}

bool isa_compiled(Isa isa) { return table_of(isa) != nullptr; }

bool isa_available(Isa isa) { return choice().available[static_cast<int>(isa)]; }

Isa current_isa() { return choice().current.load(std::memory_order_relaxed); }

bool set_current_isa(Isa isa) {
  if (!isa_available(isa)) return false;
  choice().current.store(isa, std::memory_order_relaxed);
  return true;
}

bool reads_side_by_side() { return side_by_side().load(std::memory_order_relaxed); }

void set_reads_side_by_side(bool value) { side_by_side().store(value, std::memory_order_relaxed); }

const char* isa_environment_error() {
  const std::string& error = choice().error;
  return error.empty() ? nullptr : error.c_str();
}

const KernelTable& kernels() { return *table_of(current_isa()); }

}  // namespace moe::cpu
