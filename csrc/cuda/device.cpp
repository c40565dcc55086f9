#include "cuda/device.h"

#include <cuda_runtime.h>

namespace moe::cuda {

const char* error_text(int32_t cuda_error) { return cudaGetErrorString(static_cast<cudaError_t>(cuda_error)); }

Outcome current_device(Device& device) {
  device = {};
  cudaError_t error = cudaGetDevice(&device.ordinal);
  const auto query = [&](cudaDeviceAttr attribute) {
    int value = 0;
    if (error == cudaSuccess) error = cudaDeviceGetAttribute(&value, attribute, device.ordinal);
    return value;
  };
  device.capability = 10 * query(cudaDevAttrComputeCapabilityMajor) + query(cudaDevAttrComputeCapabilityMinor);
  device.multiprocessors = query(cudaDevAttrMultiProcessorCount);
  device.shared_memory_per_block = query(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  device.shared_memory_per_multiprocessor = query(cudaDevAttrMaxSharedMemoryPerMultiprocessor);
  if (error != cudaSuccess) return {Status::kLaunchFailed, static_cast<int32_t>(error), "current_device"};
  return {};
}

}  // namespace moe::cuda
