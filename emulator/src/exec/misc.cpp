// trap, nanosleep, and what does nothing here.
#include "core/block.h"
#include "core/decode.h"
#include "core/warp.h"

namespace vgpu {
namespace {

void trap(Warp& warp, const Instruction& i) {
  fault(warp, i, FaultKind::kTrap, "the kernel executed trap", __builtin_ctz(warp.active));
}

void nothing(Warp&, const Instruction&) {}

void decode_trap(Decoder& d) {
  d.out.execute = trap;
  d.out.kind = InstructionClass::kControl;
}

void decode_breakpoint(Decoder& d) {
  d.out.execute = nothing;
  d.out.kind = InstructionClass::kControl;
}

// Lets others go first.
void sleep(Warp& warp, const Instruction&) {
  warp.block->cluster->sleeps = true;
  warp.group().yielded = true;
  advance(warp);
}

void decode_nanosleep(Decoder& d) {
  if (!d.take("u32")) d.unknown("wants .u32");
  d.source(0, type_info("u32"));
  d.out.execute = sleep;
  d.out.control = true;
  d.out.kind = InstructionClass::kControl;
}

// Its operand is a number.
void decode_pmevent(Decoder& d) {
  d.take("mask");
  d.source(0, type_info("u32"));
  d.out.execute = nothing;
}

const RegisterDecoders kRegistered({{"trap", decode_trap},
                                    {"brkpt", decode_breakpoint},
                                    {"pmevent", decode_pmevent},
                                    {"nanosleep", decode_nanosleep}});

}  // namespace
}  // namespace vgpu
