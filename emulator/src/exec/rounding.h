// The host's rounding mode for the time of one instruction.
#pragma once

#include <cfenv>

#include "exec/number_formats.h"

namespace vgpu {

// The loop between construction and destruction must take its operands from memory and leave its results there: the
// compiler moves neither across the barriers, but knows nothing else of rounding modes.
class HostRounding {
 public:
  explicit HostRounding(Rounding rounding) {
    std::fesetround(rounding == Rounding::kZero   ? FE_TOWARDZERO
                    : rounding == Rounding::kDown ? FE_DOWNWARD
                    : rounding == Rounding::kUp   ? FE_UPWARD
                                                  : FE_TONEAREST);
    asm volatile("" ::: "memory");
  }
  ~HostRounding() {
    asm volatile("" ::: "memory");
    std::fesetround(FE_TONEAREST);
  }
  HostRounding(const HostRounding&) = delete;
  HostRounding& operator=(const HostRounding&) = delete;
};

}  // namespace vgpu
