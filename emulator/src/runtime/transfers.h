// Allocation, copies and fills as the CUDA runtime does them.
#pragma once

#include <cstddef>
#include <cstdint>

#include "runtime/errors.h"
#include "runtime/streams.h"

namespace vgpu::runtime {

// Numbered like cudaMemcpyKind.
enum class CopyKind : int { kHostToHost = 0, kHostToDevice = 1, kDeviceToHost = 2, kDeviceToDevice = 3, kDefault = 4 };

// Numbered like cudaMemoryType.
enum class MemoryKind : int { kUnregistered = 0, kHost = 1, kDevice = 2, kManaged = 3 };

// `call` names the memory in reports. Host and managed memory counts as written: the host's stores go unseen.
Status allocate(void** pointer, size_t bytes, MemoryKind kind, const char* call);
Status release(void* pointer, MemoryKind kind);
MemoryKind kind_of(const void* pointer);

// Rows of `width` bytes; one row is a plain copy or fill.
struct Copy2d {
  void* to = nullptr;
  size_t to_pitch = 0;
  const void* from = nullptr;
  size_t from_pitch = 0;
  size_t width = 0, height = 1;
  CopyKind kind = CopyKind::kDefault;
};
struct Fill2d {
  void* to = nullptr;
  size_t pitch = 0;
  int value = 0;
  size_t width = 0, height = 1;
};

// Checks now, then runs or captures.
Status copy(const Copy2d& what, Stream& stream);
Status fill(const Fill2d& what, Stream& stream);

// Whether the host waits for this copy on a real GPU, though the call's name says asynchronous: pageable host memory.
bool copy_waits(const Copy2d& what);
// Whether bytes come back to the host.
bool reaches_host(const Copy2d& what);

}  // namespace vgpu::runtime
