// CPU tensors of torch in emulator memory: red zones around them, poison in them, and use after free is found.
//
// Torch has one allocator for CPU memory. While a GPU is entered here, this one takes its place.
#include <c10/core/CPUAllocator.h>
#include <pybind11/pybind11.h>

#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "core/gpu.h"
#include "runtime/context.h"

namespace {

class EmulatorAllocator : public c10::Allocator {
 public:
  static EmulatorAllocator& instance() {
    // Never destroyed: tensors may outlive everything.
    static auto& allocator = *new EmulatorAllocator;
    return allocator;
  }

  void enter(std::shared_ptr<vgpu::Gpu> gpu) {
    const std::lock_guard lock(mutex_);
    if (entered_.empty()) {
      before_ = c10::GetCPUAllocator();
      c10::SetCPUAllocator(this);
    }
    entered_.push_back(std::move(gpu));
  }

  void leave() {
    const std::lock_guard lock(mutex_);
    if (entered_.empty()) throw std::logic_error("torch memory was not entered");
    entered_.pop_back();
    if (entered_.empty()) c10::SetCPUAllocator(before_);
  }

  c10::DataPtr allocate(size_t bytes) override {
    const c10::Device cpu(c10::DeviceType::CPU);
    if (bytes == 0) return {nullptr, nullptr, &release, cpu};
    const std::lock_guard lock(mutex_);
    if (entered_.empty()) return before_->allocate(bytes);  // someone kept the pointer to this allocator
    vgpu::Memory& memory = entered_.back()->memory();
    void* pointer = memory.allocate(bytes, "tensor #" + std::to_string(++count_));
    if (!vgpu::runtime::memory_is_fresh()) memory.mark_written(pointer, bytes);
    owners_[pointer] = entered_.back();
    return {pointer, pointer, &release, cpu};
  }

  c10::DeleterFnPtr raw_deleter() const override { return &release; }

  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }

 private:
  static void release(void* pointer) {
    if (pointer == nullptr) return;
    EmulatorAllocator& self = instance();
    std::shared_ptr<vgpu::Gpu> owner;  // let go of after the lock: it may be the last one
    const std::lock_guard lock(self.mutex_);
    const auto found = self.owners_.find(pointer);
    if (found == self.owners_.end()) return;
    owner = std::move(found->second);
    self.owners_.erase(found);
    owner->memory().release(pointer);
  }

  std::mutex mutex_;
  c10::Allocator* before_ = nullptr;
  std::vector<std::shared_ptr<vgpu::Gpu>> entered_;
  std::unordered_map<void*, std::shared_ptr<vgpu::Gpu>> owners_;
  uint64_t count_ = 0;
};

}  // namespace

PYBIND11_MODULE(_torch_memory, m) {
  m.doc() = "CPU tensors of torch in emulator memory. Use it through Gpu.torch_memory().";
  // A capsule from _core, since torch's headers may bring another pybind11, to which _core's classes are strangers.
  m.def("enter", [](const pybind11::capsule& gpu) {
    if (std::string_view(gpu.name()) != "std::shared_ptr<vgpu::Gpu>")
      throw pybind11::type_error("want a GPU's capsule");
    EmulatorAllocator::instance().enter(*static_cast<std::shared_ptr<vgpu::Gpu>*>(gpu.get_pointer()));
  });
  m.def("leave", [] { EmulatorAllocator::instance().leave(); });
  m.def("enter_fresh", &vgpu::runtime::enter_fresh_memory);
  m.def("leave_fresh", &vgpu::runtime::leave_fresh_memory);
}
