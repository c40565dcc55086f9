// setmaxnreg: how many registers a warp may use. Only its rules are checked; registers are not scarce here.
#include "core/block.h"
#include "core/decode.h"
#include "core/program_builder.h"

namespace vgpu {

// All warps of a warpgroup execute the same setmaxnreg.
void check_register_changes_at_exit(Warp& warp) {
  const auto& warps = warp.block->warps;
  const uint32_t first = warp.index / 4 * 4;
  for (uint32_t k = first; k < first + 4 && k < warps.size(); ++k) {
    if (warps[k]->alive != 0) return;  // the last of them compares
  }
  for (uint32_t k = first; k < first + 4 && k < warps.size(); ++k) {
    Warp& other = *warps[k];
    if (other.register_changes <= warp.register_changes) continue;
    fault(other, other.program->code[other.last_register_change], FaultKind::kDivergentCollective,
          "only some warps of the warpgroup execute it: warp " + std::to_string(warp.index) + " did not");
  }
  for (uint32_t k = first; k < first + 4 && k < warps.size(); ++k) {
    if (warps[k]->register_changes < warp.register_changes) {
      fault(warp, warp.program->code[warp.last_register_change], FaultKind::kDivergentCollective,
            "only some warps of the warpgroup execute it: warp " + std::to_string(k) + " did not");
    }
  }
}

namespace {

void execute(Warp& warp, const Instruction& i) {
  if (!converged(warp, i)) return;
  ++warp.register_changes;
  warp.last_register_change = i.index;
  advance(warp);
}

void decode_setmaxnreg(Decoder& d) {
  d.out.kind = InstructionClass::kControl;
  const std::string what = d.take_any({"inc", "dec"});
  if (what.empty() || !d.take("sync") || !d.take("aligned") || !d.take("u32"))
    d.unknown("wants .inc or .dec, then .sync.aligned.u32");
  const ptx::Operand& count = d.operand(0);
  if (count.kind != ptx::OperandKind::kImmediate || count.bits < 24 || count.bits > 256 || count.bits % 8 != 0) {
    d.unknown("wants a constant from 24 to 256 that is a multiple of 8");
  }
  const uint32_t start = d.builder().kernel.function->max_registers;
  if (what == "dec" && start != 0 && count.bits > start) {
    d.unknown("cannot go down to " + std::to_string(count.bits) + " registers from the .maxnreg " +
              std::to_string(start));
  }
  d.out.control = true;
  d.out.execute = execute;
}

const RegisterDecoders kRegistered({{"setmaxnreg", decode_setmaxnreg}});

}  // namespace
}  // namespace vgpu
