// What every CUDA symbol of the stand-in shares.
#pragma once

#include <cuda_runtime_api.h>

#include <exception>
#include <utility>

#include "runtime/context.h"
#include "runtime/errors.h"
#include "runtime/streams.h"

#if CUDART_VERSION < 13000
#error "the stand-in for the CUDA runtime follows the headers of CUDA 13"
#endif

namespace vgpu::runtime {

inline cudaError_t code(Status status) { return static_cast<cudaError_t>(status); }

// Runs the body under the lock unless a fault is pending. Nothing is thrown at host code that does not expect it.
template <typename Body>
cudaError_t guarded(Status (*enter_call)(const char*), const char* name, Body&& body) {
  const Lock lock;
  Status status = enter_call(name);
  if (status != Status::kSuccess) return code(status);
  try {
    status = std::forward<Body>(body)();
  } catch (const std::exception& error) {
    status = refuse(Status::kUnknown, error.what());
  }
  if (status != Status::kSuccess && last_error() != status && !context().fault) refuse(status);
  return code(status);
}

template <typename Body>
cudaError_t call(const char* name, Body&& body) {
  return guarded(enter, name, std::forward<Body>(body));
}

// For calls that wait for the GPU.
template <typename Body>
cudaError_t waiting_call(const char* name, Body&& body) {
  return guarded(enter_synchronising, name, std::forward<Body>(body));
}

// Calls the body with the stream.
template <typename Body>
Status on_stream(cudaStream_t handle, Body&& body) {
  Stream* stream = Streams::instance().find(handle);
  if (stream == nullptr) return refuse(Status::kInvalidResourceHandle, "this is no stream");
  return std::forward<Body>(body)(*stream);
}

// The default stream where a translation unit was compiled with --default-stream per-thread.
inline cudaStream_t per_thread(cudaStream_t stream) { return stream == nullptr ? cudaStreamPerThread : stream; }

}  // namespace vgpu::runtime
