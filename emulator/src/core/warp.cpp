#include "core/warp.h"

#include <bit>

#include "core/block.h"

namespace vgpu {
namespace {

void locate(Fault& f, const Warp& warp, const ptx::Statement& statement) {
  const ptx::Module& module = *warp.launch->kernel->module->text;
  f.kernel = warp.launch->kernel->demangled;
  f.instruction = statement.text;
  f.ptx_line = statement.ptx_line;
  if (statement.where.file != 0 && statement.where.file < module.files.size()) {
    f.file = module.files[statement.where.file];
    f.line = statement.where.line;
    if (statement.where.caller_file != 0 && statement.where.caller_file < module.files.size()) {
      f.caller_file = module.files[statement.where.caller_file];
      f.caller_line = statement.where.caller_line;
      for (const ptx::CallPlace& call : module.call_chains[statement.where.chain]) {
        if (!f.details.empty()) f.details += "\n";
        f.details += "inlined through " + (call.file < module.files.size() ? module.files[call.file] : "?") + ":" +
                     std::to_string(call.line);
      }
    }
  } else {
    f.file = warp.launch->kernel->module->name;
    f.line = statement.ptx_line;
  }
}

Fault make_fault(const Warp& warp, const Instruction& i, FaultKind kind, std::string message, int lane,
                 std::string details) {
  Fault f;
  f.kind = kind;
  f.message = std::move(message);
  f.details = std::move(details);
  locate(f, warp, *i.statement);
  f.block = warp.block->id;
  f.warp = static_cast<int32_t>(warp.index);
  f.lane = lane;
  uint32_t thread =
      warp.index * kLanes + static_cast<uint32_t>(lane < 0 ? (warp.active ? std::countr_zero(warp.active) : 0) : lane);
  const auto& dim = warp.launch->config.block;
  f.thread = {thread % dim[0], thread / dim[0] % dim[1], thread / dim[0] / dim[1]};
  return f;
}

}  // namespace

void fault(const Warp& warp, const Instruction& i, FaultKind kind, std::string message, int lane, std::string details) {
  Fault f = make_fault(warp, i, kind, std::move(message), lane, std::move(details));
  f.format();
  throw f;
}

void fault_at(const Warp& warp, const Instruction& i, FaultKind kind, std::string message, int lane, uint64_t address,
              std::string details) {
  Fault f = make_fault(warp, i, kind, std::move(message), lane, std::move(details));
  f.address = address;
  f.has_address = true;
  f.format();
  throw f;
}

std::string place(const Warp& warp, uint32_t pc) {
  const auto& code = warp.program->code;
  if (pc >= code.size()) return "the end";
  Fault f;
  locate(f, warp, *code[pc].statement);
  std::string file = f.file.substr(f.file.find_last_of('/') + 1);
  return file + ":" + std::to_string(f.line) + " (" + code[pc].statement->text + ")";
}

bool converged(Warp& warp, const Instruction& i, LaneMask wanted) {
  Group& group = warp.group();
  LaneMask missing = wanted & warp.alive & ~group.lanes;
  if (warp.checks()) {
    // Lanes that a block of an odd size lacks are forgiven: masks of 32 lanes are the habit, and hardware ignores them.
    if (LaneMask gone = wanted & ~warp.alive & warp.born) {
      fault(warp, i, FaultKind::kDivergentCollective,
            "waits for lane " + std::to_string(std::countr_zero(gone)) + ", which has exited");
    }
    if (LaneMask strangers = group.lanes & ~wanted) {
      fault(warp, i, FaultKind::kBadArgument, "a lane executes it that is not in its mask",
            std::countr_zero(strangers));
    }
  }
  if (missing == 0) return true;
  group.wait = Wait::kConverge;
  return false;
}

void mark_unwritten(Warp& warp, const std::vector<uint32_t>& registers) {
  for (uint32_t r : registers) warp.written[r] = 0;
}

void mark_written(Warp& warp, const std::vector<uint32_t>& registers) {
  for (uint32_t r : registers) warp.written[r] |= warp.active;
}

}  // namespace vgpu
