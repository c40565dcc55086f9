#include "check/fault.h"

#include <cstdio>

namespace vgpu {
namespace {

std::string triple(const std::array<uint32_t, 3>& v) {
  return "(" + std::to_string(v[0]) + ", " + std::to_string(v[1]) + ", " + std::to_string(v[2]) + ")";
}

std::string indented(const std::string& text) {
  std::string out = "  ";
  for (char c : text) {
    out += c;
    if (c == '\n') out += "  ";
  }
  while (!out.empty() && (out.back() == ' ' || out.back() == '\n')) out.pop_back();
  return out;
}

}  // namespace

const char* name(FaultKind kind) {
  switch (kind) {
    case FaultKind::kOutOfBounds:
      return "out_of_bounds";
    case FaultKind::kUseAfterFree:
      return "use_after_free";
    case FaultKind::kMisaligned:
      return "misaligned";
    case FaultKind::kUninitialisedRegister:
      return "uninitialised_register";
    case FaultKind::kUninitialisedShared:
      return "uninitialised_shared";
    case FaultKind::kUninitialisedLocal:
      return "uninitialised_local";
    case FaultKind::kUninitialisedGlobal:
      return "uninitialised_global";
    case FaultKind::kSharedRace:
      return "shared_race";
    case FaultKind::kGlobalRace:
      return "global_race";
    case FaultKind::kAsyncTooEarly:
      return "async_too_early";
    case FaultKind::kMissingProxyFence:
      return "missing_proxy_fence";
    case FaultKind::kAsyncNotAwaited:
      return "async_not_awaited";
    case FaultKind::kDivergentCollective:
      return "divergent_collective";
    case FaultKind::kBarrierMisuse:
      return "barrier_misuse";
    case FaultKind::kMbarrierMisuse:
      return "mbarrier_misuse";
    case FaultKind::kWgmmaMisuse:
      return "wgmma_misuse";
    case FaultKind::kBadDescriptor:
      return "bad_descriptor";
    case FaultKind::kDeadlock:
      return "deadlock";
    case FaultKind::kTrap:
      return "trap";
    case FaultKind::kUnknownInstruction:
      return "unknown_instruction";
    case FaultKind::kUnsupported:
      return "unsupported";
    case FaultKind::kLaunchLimit:
      return "launch_limit";
    case FaultKind::kBadArgument:
      return "bad_argument";
  }
  return "?";
}

void Fault::format() {
  text_ = std::string(name(kind)) + ": " + message;
  if (!kernel.empty()) text_ += "\n  kernel  " + kernel;
  if (!file.empty() && line != 0) {
    text_ += "\n  source  " + file + ":" + std::to_string(line);
    if (caller_line != 0) text_ += " (inlined at " + caller_file + ":" + std::to_string(caller_line) + ")";
  } else if (!file.empty()) {
    text_ += "\n  source  " + file;
  }
  if (ptx_line != 0 || !instruction.empty()) {
    text_ += "\n  PTX     ";
    if (ptx_line != 0) text_ += "line " + std::to_string(ptx_line) + ": ";
    text_ += instruction;
  }
  // A fault of the host side of a launch is about no warp.
  if (warp >= 0) {
    text_ += "\n  where   block " + triple(block);
    if (lane >= 0) text_ += ", thread " + triple(thread);
    text_ += ", warp " + std::to_string(warp);
    if (lane >= 0) text_ += ", lane " + std::to_string(lane);
  }
  if (has_address) {
    char hex[32];
    std::snprintf(hex, sizeof hex, "0x%llx", static_cast<unsigned long long>(address));
    text_ += std::string("\n  address ") + hex;
  }
  if (!details.empty()) text_ += "\n" + indented(details);
}

const char* Fault::what() const noexcept {
  // format() may not have run where the thrower forgot it: the message alone is better than nothing.
  return text_.empty() ? message.c_str() : text_.c_str();
}

}  // namespace vgpu
