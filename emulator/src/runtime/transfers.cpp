#include "runtime/transfers.h"

#include <cstring>
#include <new>

#include "runtime/context.h"

namespace vgpu::runtime {
namespace {

constexpr size_t kStaged = 64 * 1024;  // pageable memory up to this many bytes is staged without waiting

Allocation* live(const void* pointer) {
  Allocation* a = current_gpu().memory().find(reinterpret_cast<uint64_t>(pointer));
  return a == nullptr || a->freed ? nullptr : a;
}

// Of a copy that leaves the direction open, by where the memory lies.
CopyKind resolved(const Copy2d& what) {
  if (what.kind != CopyKind::kDefault) return what.kind;
  const bool from_device = live(what.from) != nullptr, to_device = live(what.to) != nullptr;
  if (from_device) return to_device ? CopyKind::kDeviceToDevice : CopyKind::kDeviceToHost;
  return to_device ? CopyKind::kHostToDevice : CopyKind::kHostToHost;
}

Status check_device(const void* pointer, size_t pitch, size_t width, size_t height, const char* role) {
  const auto begin = reinterpret_cast<uint64_t>(pointer);
  const uint64_t end = begin + (height - 1) * pitch + width;
  Memory& memory = current_gpu().memory();
  const Allocation* a = memory.find(begin);
  std::string reason;
  if (a == nullptr)
    reason = std::string(role) + " is no device memory: " + memory.describe(begin);
  else if (a->freed)
    reason = std::string(role) + " was freed: " + memory.describe(begin);
  else if (end > a->base + a->bytes)
    reason = std::string(role) + " ends " + memory.describe(end - 1);
  return reason.empty() ? Status::kSuccess : refuse(Status::kInvalidValue, std::move(reason));
}

// What was not written at the source is not written at the destination.
void copy_state(void* to, const void* from, size_t bytes) {
  Memory& memory = current_gpu().memory();
  const Allocation* source = live(from);
  if (source == nullptr || source->written == nullptr) {
    memory.mark_written(to, bytes);
    return;
  }
  auto written = [&](uint64_t at) { return (source->written[at / 64] >> (at % 64) & 1) != 0; };
  const uint64_t first = reinterpret_cast<uint64_t>(from) - source->base;
  auto* target = static_cast<std::byte*>(to);
  for (size_t at = 0; at < bytes;) {
    size_t end = at;
    while (end < bytes && written(first + end) == written(first + at)) ++end;
    if (written(first + at))
      memory.mark_written(target + at, end - at);
    else
      memory.mark_fresh(target + at, end - at);
    at = end;
  }
}

void copy_row(void* to, const void* from, size_t bytes, CopyKind kind) {
  std::memmove(to, from, bytes);
  if (kind == CopyKind::kDeviceToDevice) copy_state(to, from, bytes);
  if (kind == CopyKind::kHostToDevice) current_gpu().memory().mark_written(to, bytes);
}

}  // namespace

Status allocate(void** pointer, size_t bytes, MemoryKind kind, const char* call) {
  if (pointer == nullptr) return refuse(Status::kInvalidValue, "a null pointer to the pointer");
  Gpu& gpu = current_gpu();
  *pointer = nullptr;
  if (bytes == 0) return Status::kSuccess;
  const bool on_device = kind == MemoryKind::kDevice;
  if (on_device && gpu.memory().live_bytes() + bytes > gpu.chip().global_bytes)
    return refuse(Status::kMemoryAllocation, std::to_string(bytes) + " bytes more than " + gpu.chip().name + " has");
  Context& here = context(gpu);
  auto& blocks = on_device ? here.device_blocks : kind == MemoryKind::kHost ? here.host_blocks : here.managed_blocks;
  try {
    *pointer = gpu.memory().allocate(bytes, std::string(call) + " #" + std::to_string(++here.allocations));
  } catch (const std::bad_alloc&) {
    return refuse(Status::kMemoryAllocation, "the host has no " + std::to_string(bytes) + " bytes left");
  }
  if (!on_device) gpu.memory().mark_written(*pointer, bytes);
  blocks[reinterpret_cast<uint64_t>(*pointer)] = bytes;
  return Status::kSuccess;
}

Status release(void* pointer, MemoryKind kind) {
  if (pointer == nullptr) return Status::kSuccess;
  Context& here = context();
  const auto address = reinterpret_cast<uint64_t>(pointer);
  const bool known = kind == MemoryKind::kHost ? here.host_blocks.erase(address) != 0
                                               : here.device_blocks.erase(address) + here.managed_blocks.erase(address);
  if (!known || !current_gpu().memory().release(pointer))
    return refuse(Status::kInvalidValue,
                  "freed what is no live allocation: " + current_gpu().memory().describe(address));
  return Status::kSuccess;
}

MemoryKind kind_of(const void* pointer) {
  const Allocation* a = live(pointer);
  if (a == nullptr) return MemoryKind::kUnregistered;
  const Context& here = context();
  if (here.host_blocks.contains(a->base)) return MemoryKind::kHost;
  if (here.managed_blocks.contains(a->base)) return MemoryKind::kManaged;
  return MemoryKind::kDevice;
}

bool reaches_host(const Copy2d& what) {
  const CopyKind kind = resolved(what);
  return kind == CopyKind::kDeviceToHost || kind == CopyKind::kHostToHost;
}

bool copy_waits(const Copy2d& what) {
  const CopyKind kind = resolved(what);
  if (kind == CopyKind::kDeviceToHost) return kind_of(what.to) == MemoryKind::kUnregistered;
  if (kind == CopyKind::kHostToDevice)
    return kind_of(what.from) == MemoryKind::kUnregistered && what.width * what.height > kStaged;
  return kind == CopyKind::kHostToHost;
}

Status copy(const Copy2d& what, Stream& stream) {
  if (static_cast<int>(what.kind) < 0 || static_cast<int>(what.kind) > 4)
    return refuse(Status::kInvalidMemcpyDirection, "kind " + std::to_string(static_cast<int>(what.kind)));
  if (what.width == 0 || what.height == 0) return Status::kSuccess;
  if (what.height > 1 && (what.to_pitch < what.width || what.from_pitch < what.width))
    return refuse(Status::kInvalidPitchValue, "a pitch is less than the width");
  if (what.to == nullptr || what.from == nullptr) return refuse(Status::kInvalidValue, "a null pointer");
  const CopyKind kind = resolved(what);
  Status status = Status::kSuccess;
  if (kind == CopyKind::kDeviceToHost || kind == CopyKind::kDeviceToDevice)
    status = check_device(what.from, what.from_pitch, what.width, what.height, "the source");
  if (status == Status::kSuccess && (kind == CopyKind::kHostToDevice || kind == CopyKind::kDeviceToDevice))
    status = check_device(what.to, what.to_pitch, what.width, what.height, "the destination");
  if (status != Status::kSuccess) return status;
  return Streams::instance().submit(stream, NodeKind::kMemcpy, [what, kind] {
    for (size_t row = 0; row < what.height; ++row)
      copy_row(static_cast<std::byte*>(what.to) + row * what.to_pitch,
               static_cast<const std::byte*>(what.from) + row * what.from_pitch, what.width, kind);
    return Status::kSuccess;
  });
}

Status fill(const Fill2d& what, Stream& stream) {
  if (what.width == 0 || what.height == 0) return Status::kSuccess;
  if (what.height > 1 && what.pitch < what.width)
    return refuse(Status::kInvalidPitchValue, "the pitch is less than the width");
  const Status status = check_device(what.to, what.pitch, what.width, what.height, "the memory to fill");
  if (status != Status::kSuccess) return status;
  return Streams::instance().submit(stream, NodeKind::kMemset, [what] {
    for (size_t row = 0; row < what.height; ++row) {
      std::byte* to = static_cast<std::byte*>(what.to) + row * what.pitch;
      std::memset(to, what.value, what.width);
      current_gpu().memory().mark_written(to, what.width);
    }
    return Status::kSuccess;
  });
}

}  // namespace vgpu::runtime
