#include "runtime/context.h"

#include <atomic>
#include <set>

namespace vgpu::runtime {
namespace {

std::recursive_mutex& mutex() {
  // Never destroyed: fat binaries unregister while the process ends.
  static auto& only = *new std::recursive_mutex;
  return only;
}

// Of the whole process, since torch allocates on threads of its own.
std::atomic<int> fresh_depth = 0;

Status sticky_error(const Context& context) { return context.fault ? status_of(*context.fault) : Status::kSuccess; }

}  // namespace

Lock::Lock() : held_(mutex()) {}

Context& context(Gpu& gpu) {
  std::shared_ptr<void>& slot = gpu.runtime();
  if (!slot) slot = std::make_shared<Context>();
  return *static_cast<Context*>(slot.get());
}

Context& context() { return context(current_gpu()); }

std::optional<Fault> pending_fault(Gpu& gpu) {
  const Lock lock;
  return context(gpu).fault;
}

std::optional<Fault> clear_fault(Gpu& gpu) {
  const Lock lock;
  std::optional<Fault> fault = std::move(context(gpu).fault);
  context(gpu).fault.reset();
  clear_last_error();
  return fault;
}

Calls calls(Gpu& gpu) {
  const Lock lock;
  return context(gpu).calls;
}

void clear_calls(Gpu& gpu) {
  const Lock lock;
  context(gpu).calls = {};
}

Status enter(const char* call) {
  Context& here = context();
  ++here.calls.all[call];
  return sticky_error(here);
}

Status enter_synchronising(const char* call) {
  ++context().calls.synchronising[call];
  return enter(call);
}

Status keep(const Fault& fault) {
  // A launch that was refused leaves the GPU as it was; what stops a running kernel ends its context.
  if (fault.kind == FaultKind::kLaunchLimit) return refuse(Status::kInvalidConfiguration, fault.what());
  context().fault = fault;
  return status_of(fault);  // the context's error, not the thread's: another GPU is not concerned
}

Status current_error(bool clear) {
  if (const Status sticky = sticky_error(context()); sticky != Status::kSuccess) return sticky;
  const Status status = last_error();
  if (clear) clear_last_error();
  return status;
}

const char* describe_error(int code) {
  const Lock lock;
  const Context& here = context();
  if (here.fault && static_cast<int>(status_of(*here.fault)) == code) {
    static auto& reports = *new std::set<std::string>;
    return reports.insert(std::string(error_text(code)) + "\n" + here.fault->what()).first->c_str();
  }
  return error_text(code);
}

void enter_fresh_memory() { ++fresh_depth; }
void leave_fresh_memory() { --fresh_depth; }
bool memory_is_fresh() { return fresh_depth > 0; }

}  // namespace vgpu::runtime
