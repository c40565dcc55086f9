// The virtual GPU as a host program sees it: modules, memory, launches.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "check/fault.h"
#include "core/chip.h"
#include "core/memory.h"
#include "count/counters.h"

namespace vgpu {

struct Kernel;  // core/kernel.h
struct Module;  // core/kernel.h

// When an asynchronous operation takes effect, within what the memory model allows.
enum class Completion : uint8_t { kRandom, kLatest, kLifo, kEager };
// How mma accumulates: fp32 one product after the other; float64, rounded once; fp32, truncated like tensor cores do.
enum class Accumulate : uint8_t { kSequential, kExact, kTruncate };

struct Options {
  uint64_t seed = 0;
  bool checks = true;  // memory, races, initialisation, collectives' lanes, async rules
  // False: values that nothing wrote (registers, shared memory) may be used. Sorting libraries pad with them and drop
  // them.
  bool uninitialised = true;
  bool counters = true;  // per instruction; the totals of instructions are always there
  Completion completion = Completion::kRandom;
  Accumulate accumulate = Accumulate::kSequential;
  uint32_t host_threads = 0;         // 0: EMULATOR_HOST_THREADS, or as many as the process may use
  uint64_t hang_limit = 20'000'000;  // warp instructions with no progress before a launch counts as hung
};

struct LaunchConfig {
  std::array<uint32_t, 3> grid{1, 1, 1}, block{1, 1, 1}, cluster{1, 1, 1};
  uint32_t dynamic_shared_bytes = 0;
  bool cooperative = false;
  bool programmatic = false;  // programmatic dependent launch: may start before its predecessor has ended
  uint64_t stream = 0;
};

class Gpu {
 public:
  explicit Gpu(const Chip& chip, Options options = {});
  ~Gpu();
  Gpu(const Gpu&) = delete;
  Gpu& operator=(const Gpu&) = delete;

  Options options;  // read at each launch

  const Chip& chip() const { return chip_; }
  void set_chip(const Chip& chip) { chip_ = chip; }
  Memory& memory() { return memory_; }

  // Parses and lays out module variables; kernels are decoded at their first launch. Throws ptx::SyntaxError, Fault.
  std::shared_ptr<Module> load(std::string_view ptx, const std::string& name);

  // Runs to the end. `parameters` is the packed parameter buffer. Throws Fault. The record is also appended to
  // launches().
  const LaunchRecord& launch(const Kernel& kernel, const LaunchConfig& config, std::span<const std::byte> parameters);

  std::vector<LaunchRecord>& launches() { return launches_; }

  // Called with each line that a kernel prints; the default writes to stdout.
  std::function<void(std::string_view)> print;

  // What the runtime stand-in keeps for this GPU (runtime/context.h): modules loaded from fat binaries, a pending
  // fault.
  std::shared_ptr<void>& runtime() { return runtime_; }

 private:
  Chip chip_;
  Memory memory_;
  std::vector<LaunchRecord> launches_;
  uint64_t launch_number_ = 0;
  bool dependents_may_overlap_ = false;  // the last launch let its dependents in
  std::shared_ptr<void> runtime_;        // last, so that it goes before the memory that its modules live in
};

// The one that the runtime stand-in uses. Never null; a default H100 until another is made current.
Gpu& current_gpu();
// Returns the one that was current before.
std::shared_ptr<Gpu> make_current(std::shared_ptr<Gpu> gpu);

}  // namespace vgpu
