// Stores past the caches, for results that are larger than these and are written once: a plain store first reads the
// line that it is going to overwrite. Each instruction set has its own, cpu/<isa>/stream.h.
#pragma once

#include <stdint.h>

#ifndef MOE_ISA
#error "define MOE_ISA before this header"
#endif

namespace moe::cpu::MOE_ISA {

// Copies floats; finish_streams() must follow before another thread may look.
static void stream_run(const float* from, float* to, int64_t count);
static void finish_streams();

}  // namespace moe::cpu::MOE_ISA
