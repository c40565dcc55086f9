// What went wrong in a kernel, where, and who did it.
#pragma once

#include <array>
#include <cstdint>
#include <exception>
#include <string>

namespace vgpu {

enum class FaultKind : uint8_t {
  kOutOfBounds,
  kUseAfterFree,
  kMisaligned,
  kUninitialisedRegister,
  kUninitialisedShared,
  kUninitialisedLocal,
  kUninitialisedGlobal,
  kSharedRace,
  kGlobalRace,
  kAsyncTooEarly,      // touched what a pending cp.async, bulk copy, TMA or wgmma has not delivered or not read yet
  kMissingProxyFence,  // the async proxy reads what ordinary stores wrote with no fence.proxy.async between
  kAsyncNotAwaited,    // a block ends while an asynchronous operation still uses its shared memory
  kDivergentCollective,
  kBarrierMisuse,
  kMbarrierMisuse,
  kWgmmaMisuse,
  kBadDescriptor,  // TMA descriptor, wgmma matrix descriptor
  kDeadlock,
  kTrap,
  kUnknownInstruction,
  kUnsupported,
  kLaunchLimit,
  kBadArgument,  // a number that an instruction does not allow: shuffle masks, mbarrier counts, copy sizes
};

// "out_of_bounds": what Python sees.
const char* name(FaultKind kind);

// Thrown by the core, carried to Python as emulator.Fault with the same fields.
struct Fault : std::exception {
  FaultKind kind = FaultKind::kTrap;
  std::string message;      // one sentence
  std::string kernel;       // demangled
  std::string instruction;  // PTX text
  std::string file;         // source file, or the name of the PTX text
  uint32_t line = 0;        // in `file`
  uint32_t ptx_line = 0;
  std::string caller_file;  // where it was inlined
  uint32_t caller_line = 0;
  std::array<uint32_t, 3> block{};
  std::array<uint32_t, 3> thread{};
  int32_t warp = -1, lane = -1;  // -1: not about one
  uint64_t address = 0;
  bool has_address = false;
  std::string details;  // further lines: the other access of a race, each warp's place in a deadlock, …

  // The whole report, several lines.
  const char* what() const noexcept override;
  void format();  // fills the text that what() returns

 private:
  std::string text_;
};

}  // namespace vgpu
