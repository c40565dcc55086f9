// What the stand-in of the CUDA runtime keeps for each virtual GPU.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>

#include "core/gpu.h"
#include "core/kernel.h"
#include "runtime/errors.h"

namespace vgpu::runtime {

class FatBinary;

// Everything in the runtime, and each launch, happens under one lock: host threads take turns.
class Lock {
 public:
  Lock();

 private:
  std::unique_lock<std::recursive_mutex> held_;
};

// How often the host called what, and which of the calls made it wait for the GPU.
struct Calls {
  std::map<std::string, uint64_t> all;
  std::map<std::string, uint64_t> synchronising;
};

struct Context {
  std::optional<Fault> fault;  // sticky: every later call fails with it
  Calls calls;
  // A module belongs to a binary and to the chip that its PTX was chosen for.
  std::map<std::pair<const FatBinary*, std::string>, std::shared_ptr<Module>> modules;
  // Memory from cudaMalloc and its like: address to bytes.
  std::unordered_map<uint64_t, size_t> device_blocks, host_blocks, managed_blocks;
  uint64_t allocations = 0;  // so far
};

// Of the GPU, and of the current one.
Context& context(Gpu& gpu);
Context& context();

// Copies, since a launch on another thread may replace them.
std::optional<Fault> pending_fault(Gpu& gpu);
// The fault that was pending. Later calls succeed again.
std::optional<Fault> clear_fault(Gpu& gpu);
Calls calls(Gpu& gpu);
void clear_calls(Gpu& gpu);

// Counts a host call; fails when a fault is pending.
Status enter(const char* call);
// The same for one that waits for the GPU.
Status enter_synchronising(const char* call);

// Keeps the fault and returns what the call that met it reports.
Status keep(const Fault& fault);
// The error of the thread, or that of a pending fault. `clear`: forget the former.
Status current_error(bool clear);
// As error_text(), with the whole report when the code is that of the pending fault.
const char* describe_error(int code);

// Between these two, memory that stands in for the device's (torch's CPU tensors) counts as not written. May be nested.
void enter_fresh_memory();
void leave_fresh_memory();
bool memory_is_fresh();

}  // namespace vgpu::runtime
