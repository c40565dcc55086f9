// Emulator memory seen from Python.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/gpu.h"

namespace vgpu::python {

// An allocation that lives as long as the Python object that holds it.
class Buffer {
 public:
  Buffer(std::shared_ptr<Gpu> gpu, size_t bytes, std::string label)
      : gpu_(std::move(gpu)), pointer_(gpu_->memory().allocate(bytes, std::move(label))), bytes_(bytes) {}
  ~Buffer() { gpu_->memory().release(pointer_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  void* pointer() const { return pointer_; }
  size_t bytes() const { return bytes_; }

 private:
  std::shared_ptr<Gpu> gpu_;
  void* pointer_;
  size_t bytes_;
};

// Host memory that a kernel may touch during one launch.
struct Range {
  uint64_t begin = 0, end = 0;
  bool writable = true;
  std::string label;
};

// Adds the ranges to a Memory, and takes them out again. Ranges that lie in a live allocation are in already;
// overlapping ones become one.
class Exposed {
 public:
  Exposed(Memory& memory, std::vector<Range> ranges);
  ~Exposed();
  Exposed(const Exposed&) = delete;
  Exposed& operator=(const Exposed&) = delete;

 private:
  Memory& memory_;
  std::vector<uint64_t> added_;
};

}  // namespace vgpu::python
