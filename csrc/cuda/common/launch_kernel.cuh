// Starting a kernel: the one place that turns CUDA's error codes into an Outcome.
#pragma once

#include <cuda_runtime.h>

#include "cuda/launch.h"

namespace moe::cuda {

// A failed call leaves its error for the next one to find, so it is taken here.
inline Outcome failed(const char* name, cudaError_t error) {
  static_cast<void>(cudaGetLastError());
  return {Status::kLaunchFailed, static_cast<int32_t>(error), name};
}

// Launches kernel<<<grid, block, shared_bytes, stream>>>(arguments...). `name` is for error messages. A grid without
// blocks is success.
template <class... Parameters, class... Arguments>
Outcome launch(const char* name, void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes,
               Stream stream, const Arguments&... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return {};
  constexpr size_t kWithoutOptIn = 48 * 1024;
  cudaError_t error = cudaSuccess;
  if (shared_bytes > kWithoutOptIn) {
    error = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(shared_bytes));
  }
  if (error == cudaSuccess) {
    kernel<<<grid, block, shared_bytes, static_cast<cudaStream_t>(stream)>>>(arguments...);
    error = cudaGetLastError();
  }
  return error == cudaSuccess ? Outcome{} : failed(name, error);
}

}  // namespace moe::cuda
