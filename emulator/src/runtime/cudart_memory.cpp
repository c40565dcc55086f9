// CUDA symbols: memory.
#include <cstring>

#include "runtime/cudart_support.h"
#include "runtime/registry.h"
#include "runtime/transfers.h"

using namespace vgpu;
using namespace vgpu::runtime;

namespace {

Copy2d line(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  return {to, bytes, from, bytes, bytes, 1, static_cast<CopyKind>(kind)};
}

// A copy that returns when it is done. Between two places of the device the host does not wait.
cudaError_t copy_now(const char* name, const Copy2d& what, cudaStream_t stream) {
  auto body = [&] {
    const Status status = Streams::instance().refuse_unsafe(name);
    return status != Status::kSuccess ? status : on_stream(stream, [&](Stream& s) { return copy(what, s); });
  };
  const Lock lock;
  const bool on_device = what.kind == CopyKind::kDeviceToDevice ||
                         (what.kind == CopyKind::kDefault && !reaches_host(what) && !copy_waits(what));
  return on_device ? call(name, body) : waiting_call(name, body);
}

cudaError_t copy_async(const char* name, const Copy2d& what, cudaStream_t stream) {
  auto body = [&] {
    return on_stream(stream, [&](Stream& s) {
      if (s.capture && copy_waits(what)) {
        s.capture->invalid = true;
        return refuse(Status::kStreamCaptureUnsupported, "a copy of pageable host memory during a capture");
      }
      return copy(what, s);
    });
  };
  const Lock lock;
  return copy_waits(what) ? waiting_call(name, body) : call(name, body);
}

cudaError_t fill_on(const char* name, const Fill2d& what, cudaStream_t stream) {
  return call(name, [&] { return on_stream(stream, [&](Stream& s) { return fill(what, s); }); });
}

// Part of a device variable.
Status part_of(const void* symbol, size_t bytes, size_t offset, void** address) {
  size_t size = 0;
  const Status status = Registry::instance().variable(symbol, address, &size);
  if (status != Status::kSuccess) return status;
  if (offset > size || bytes > size - offset)
    return refuse(Status::kInvalidValue,
                  std::to_string(offset + bytes) + " bytes of a variable of " + std::to_string(size));
  *address = static_cast<std::byte*>(*address) + offset;
  return Status::kSuccess;
}

// Calls copy_part with the address; a variable that is not there, or is too small, is the call's error.
template <typename Copy>
cudaError_t with_part(const void* symbol, size_t bytes, size_t offset, Copy&& copy_part) {
  const Lock lock;
  if (context().fault) return copy_part(nullptr);  // fails with it
  void* address = nullptr;
  const Status status = part_of(symbol, bytes, offset, &address);
  return status != Status::kSuccess ? code(status) : copy_part(address);
}

cudaError_t allocate_blocking(const char* name, void** pointer, size_t bytes, MemoryKind kind) {
  return waiting_call(name, [&] {
    const Status status = Streams::instance().refuse_unsafe(name);
    return status != Status::kSuccess ? status : allocate(pointer, bytes, kind, name);
  });
}

cudaError_t free_blocking(const char* name, void* pointer, MemoryKind kind) {
  return waiting_call(name, [&] {
    const Status status = Streams::instance().refuse_unsafe(name);
    return status != Status::kSuccess ? status : release(pointer, kind);
  });
}

// Memory nodes of graphs are not emulated.
Status refuse_capture(Stream& stream, const char* name) {
  if (!stream.capture) return Status::kSuccess;
  stream.capture->invalid = true;
  return refuse(Status::kNotSupported, std::string(name) + " in a captured stream is not emulated");
}

cudaError_t allocate_async(void** pointer, size_t bytes, cudaStream_t stream) {
  return call("cudaMallocAsync", [&] {
    return on_stream(stream, [&](Stream& s) {
      const Status status = refuse_capture(s, "cudaMallocAsync");
      return status != Status::kSuccess ? status : allocate(pointer, bytes, MemoryKind::kDevice, "cudaMallocAsync");
    });
  });
}

cudaError_t free_async(void* pointer, cudaStream_t stream) {
  return call("cudaFreeAsync", [&] {
    return on_stream(stream, [&](Stream& s) {
      const Status status = refuse_capture(s, "cudaFreeAsync");
      return status != Status::kSuccess ? status : release(pointer, MemoryKind::kDevice);
    });
  });
}

}  // namespace

extern "C" {

// Allocation

cudaError_t CUDARTAPI cudaMalloc(void** pointer, size_t bytes) {
  return allocate_blocking("cudaMalloc", pointer, bytes, MemoryKind::kDevice);
}

cudaError_t CUDARTAPI cudaFree(void* pointer) { return free_blocking("cudaFree", pointer, MemoryKind::kDevice); }

cudaError_t CUDARTAPI cudaMallocAsync(void** pointer, size_t bytes, cudaStream_t stream) {
  return allocate_async(pointer, bytes, stream);
}

cudaError_t cudaMallocAsync_ptsz(void** pointer, size_t bytes, cudaStream_t stream) {
  return allocate_async(pointer, bytes, per_thread(stream));
}

cudaError_t CUDARTAPI cudaFreeAsync(void* pointer, cudaStream_t stream) { return free_async(pointer, stream); }

cudaError_t cudaFreeAsync_ptsz(void* pointer, cudaStream_t stream) { return free_async(pointer, per_thread(stream)); }

cudaError_t CUDARTAPI cudaMallocHost(void** pointer, size_t bytes) {
  return allocate_blocking("cudaMallocHost", pointer, bytes, MemoryKind::kHost);
}

cudaError_t CUDARTAPI cudaHostAlloc(void** pointer, size_t bytes, unsigned) {
  return allocate_blocking("cudaHostAlloc", pointer, bytes, MemoryKind::kHost);
}

cudaError_t CUDARTAPI cudaFreeHost(void* pointer) { return free_blocking("cudaFreeHost", pointer, MemoryKind::kHost); }

cudaError_t CUDARTAPI cudaMallocManaged(void** pointer, size_t bytes, unsigned) {
  return allocate_blocking("cudaMallocManaged", pointer, bytes, MemoryKind::kManaged);
}

cudaError_t CUDARTAPI cudaMemGetInfo(size_t* free, size_t* total) {
  return call("cudaMemGetInfo", [&] {
    Gpu& gpu = current_gpu();
    *total = gpu.chip().global_bytes;
    *free = *total - std::min<size_t>(*total, gpu.memory().live_bytes());
    return Status::kSuccess;
  });
}

cudaError_t CUDARTAPI cudaPointerGetAttributes(cudaPointerAttributes* out, const void* pointer) {
  return call("cudaPointerGetAttributes", [&] {
    const MemoryKind kind = kind_of(pointer);
    *out = {};
    out->type = static_cast<cudaMemoryType>(kind);
    out->device = kind == MemoryKind::kUnregistered ? cudaInvalidDeviceId : 0;
    out->devicePointer = kind == MemoryKind::kUnregistered ? nullptr : const_cast<void*>(pointer);
    out->hostPointer = kind == MemoryKind::kDevice ? nullptr : const_cast<void*>(pointer);
    return Status::kSuccess;
  });
}

// Copies

cudaError_t CUDARTAPI cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  return copy_now("cudaMemcpy", line(to, from, bytes, kind), nullptr);
}

cudaError_t cudaMemcpy_ptds(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  return copy_now("cudaMemcpy", line(to, from, bytes, kind), cudaStreamPerThread);
}

cudaError_t CUDARTAPI cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                                      cudaStream_t stream) {
  return copy_async("cudaMemcpyAsync", line(to, from, bytes, kind), stream);
}

cudaError_t cudaMemcpyAsync_ptsz(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
  return copy_async("cudaMemcpyAsync", line(to, from, bytes, kind), per_thread(stream));
}

cudaError_t CUDARTAPI cudaMemcpy2D(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width,
                                   size_t height, cudaMemcpyKind kind) {
  return copy_now("cudaMemcpy2D", {to, to_pitch, from, from_pitch, width, height, static_cast<CopyKind>(kind)},
                  nullptr);
}

cudaError_t cudaMemcpy2D_ptds(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width,
                              size_t height, cudaMemcpyKind kind) {
  return copy_now("cudaMemcpy2D", {to, to_pitch, from, from_pitch, width, height, static_cast<CopyKind>(kind)},
                  cudaStreamPerThread);
}

cudaError_t CUDARTAPI cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width,
                                        size_t height, cudaMemcpyKind kind, cudaStream_t stream) {
  return copy_async("cudaMemcpy2DAsync", {to, to_pitch, from, from_pitch, width, height, static_cast<CopyKind>(kind)},
                    stream);
}

cudaError_t cudaMemcpy2DAsync_ptsz(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width,
                                   size_t height, cudaMemcpyKind kind, cudaStream_t stream) {
  return copy_async("cudaMemcpy2DAsync", {to, to_pitch, from, from_pitch, width, height, static_cast<CopyKind>(kind)},
                    per_thread(stream));
}

cudaError_t CUDARTAPI cudaMemcpyToSymbol(const void* symbol, const void* from, size_t bytes, size_t offset,
                                         cudaMemcpyKind kind) {
  return with_part(symbol, bytes, offset,
                   [&](void* part) { return copy_now("cudaMemcpyToSymbol", line(part, from, bytes, kind), nullptr); });
}

cudaError_t CUDARTAPI cudaMemcpyFromSymbol(void* to, const void* symbol, size_t bytes, size_t offset,
                                           cudaMemcpyKind kind) {
  return with_part(symbol, bytes, offset,
                   [&](void* part) { return copy_now("cudaMemcpyFromSymbol", line(to, part, bytes, kind), nullptr); });
}

cudaError_t CUDARTAPI cudaMemcpyToSymbolAsync(const void* symbol, const void* from, size_t bytes, size_t offset,
                                              cudaMemcpyKind kind, cudaStream_t stream) {
  return with_part(symbol, bytes, offset, [&](void* part) {
    return copy_async("cudaMemcpyToSymbolAsync", line(part, from, bytes, kind), stream);
  });
}

cudaError_t CUDARTAPI cudaMemcpyFromSymbolAsync(void* to, const void* symbol, size_t bytes, size_t offset,
                                                cudaMemcpyKind kind, cudaStream_t stream) {
  return with_part(symbol, bytes, offset, [&](void* part) {
    return copy_async("cudaMemcpyFromSymbolAsync", line(to, part, bytes, kind), stream);
  });
}

cudaError_t CUDARTAPI cudaGetSymbolAddress(void** address, const void* symbol) {
  return call("cudaGetSymbolAddress", [&] { return Registry::instance().variable(symbol, address, nullptr); });
}

cudaError_t CUDARTAPI cudaGetSymbolSize(size_t* bytes, const void* symbol) {
  return call("cudaGetSymbolSize", [&] { return Registry::instance().variable(symbol, nullptr, bytes); });
}

// Fills

cudaError_t CUDARTAPI cudaMemset(void* to, int value, size_t bytes) {
  return fill_on("cudaMemset", {to, bytes, value, bytes, 1}, nullptr);
}

cudaError_t cudaMemset_ptds(void* to, int value, size_t bytes) {
  return fill_on("cudaMemset", {to, bytes, value, bytes, 1}, cudaStreamPerThread);
}

cudaError_t CUDARTAPI cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream) {
  return fill_on("cudaMemsetAsync", {to, bytes, value, bytes, 1}, stream);
}

cudaError_t cudaMemsetAsync_ptsz(void* to, int value, size_t bytes, cudaStream_t stream) {
  return fill_on("cudaMemsetAsync", {to, bytes, value, bytes, 1}, per_thread(stream));
}

cudaError_t CUDARTAPI cudaMemset2D(void* to, size_t pitch, int value, size_t width, size_t height) {
  return fill_on("cudaMemset2D", {to, pitch, value, width, height}, nullptr);
}

cudaError_t CUDARTAPI cudaMemset2DAsync(void* to, size_t pitch, int value, size_t width, size_t height,
                                        cudaStream_t stream) {
  return fill_on("cudaMemset2DAsync", {to, pitch, value, width, height}, stream);
}

}  // extern "C"
