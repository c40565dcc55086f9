// CUDA symbols: registration, launches, attributes of kernels, occupancy.
#include "runtime/cudart_support.h"
#include "runtime/launch.h"
#include "runtime/occupancy.h"
#include "runtime/registry.h"

using namespace vgpu;
using namespace vgpu::runtime;

namespace {

std::array<uint32_t, 3> triple(dim3 v) { return {v.x, v.y, v.z}; }

FatBinary* binary_of(void** handle) { return reinterpret_cast<FatBinary*>(handle); }

cudaError_t launch_kernel(const char* name, const void* host, dim3 grid, dim3 block, void** arguments, size_t shared,
                          cudaStream_t stream, bool cooperative = false) {
  return call(name, [&] {
    LaunchRequest request;
    request.host = host;
    request.grid = triple(grid);
    request.block = triple(block);
    request.dynamic_shared = shared;
    request.cooperative = cooperative;
    request.stream = stream;
    request.arguments = arguments;
    return launch(request);
  });
}

Status read_attributes(const cudaLaunchConfig_t& config, LaunchRequest* request) {
  for (unsigned i = 0; i < config.numAttrs; ++i) {
    const cudaLaunchAttribute& attribute = config.attrs[i];
    switch (attribute.id) {
      case cudaLaunchAttributeClusterDimension:
        request->cluster = {attribute.val.clusterDim.x, attribute.val.clusterDim.y, attribute.val.clusterDim.z};
        if (request->cluster[0] == 0 || request->cluster[1] == 0 || request->cluster[2] == 0)
          return refuse(Status::kInvalidClusterSize, "a cluster with a dimension of 0");
        break;
      case cudaLaunchAttributeCooperative:
        request->cooperative = attribute.val.cooperative != 0;
        break;
      case cudaLaunchAttributeProgrammaticStreamSerialization:
        request->programmatic = attribute.val.programmaticStreamSerializationAllowed != 0;
        break;
      // These change when and where blocks run, or what is cached, which the emulator does not model.
      case cudaLaunchAttributeIgnore:
      case cudaLaunchAttributeAccessPolicyWindow:
      case cudaLaunchAttributeSynchronizationPolicy:
      case cudaLaunchAttributeClusterSchedulingPolicyPreference:
      case cudaLaunchAttributePriority:
      case cudaLaunchAttributePreferredClusterDimension:
      case cudaLaunchAttributePreferredSharedMemoryCarveout:
        break;
      default:
        return refuse(Status::kNotSupported,
                      "launch attribute " + std::to_string(static_cast<int>(attribute.id)) + " is not emulated");
    }
  }
  return Status::kSuccess;
}

cudaError_t launch_extended(const char* name, const cudaLaunchConfig_t* config, const void* host, void** arguments,
                            cudaStream_t stream) {
  return call(name, [&] {
    LaunchRequest request;
    request.host = host;
    request.grid = triple(config->gridDim);
    request.block = triple(config->blockDim);
    request.dynamic_shared = config->dynamicSmemBytes;
    request.stream = stream;
    request.arguments = arguments;
    const Status status = read_attributes(*config, &request);
    return status == Status::kSuccess ? launch(request) : status;
  });
}

Status set_attribute(const void* host, cudaFuncAttribute attribute, int value) {
  const Registry::Found found = Registry::instance().kernel(host);
  if (found.status != Status::kSuccess) return found.status;
  const Chip& chip = current_gpu().chip();
  switch (attribute) {
    case cudaFuncAttributeMaxDynamicSharedMemorySize: {
      const int64_t limit = int64_t{chip.shared_per_block_optin} - found.kernel->static_shared_bytes;
      if (value < 0 || value > limit)
        return refuse(Status::kInvalidValue, std::to_string(value) + " bytes of dynamic shared memory for " +
                                                 found.kernel->demangled + ", " + chip.name + " leaves " +
                                                 std::to_string(limit));
      found.function->sets_dynamic_shared = true;
      found.function->max_dynamic_shared_bytes = static_cast<uint32_t>(value);
      return Status::kSuccess;
    }
    case cudaFuncAttributePreferredSharedMemoryCarveout:
      if (value < -1 || value > 100) return refuse(Status::kInvalidValue, "a carveout of -1 to 100 is wanted");
      found.function->shared_carveout = value;
      return Status::kSuccess;
    case cudaFuncAttributeNonPortableClusterSizeAllowed:
      if (value != 0 && value != 1) return refuse(Status::kInvalidValue, "0 or 1 is wanted");
      found.function->non_portable_cluster = value != 0;
      return Status::kSuccess;
    case cudaFuncAttributeClusterSchedulingPolicyPreference:
      return Status::kSuccess;
    default:
      return refuse(Status::kInvalidValue, "function attribute " + std::to_string(static_cast<int>(attribute)) +
                                               " is not known to the emulator");
  }
}

Status get_attributes(cudaFuncAttributes* out, const void* host) {
  const Registry::Found found = Registry::instance().kernel(host);
  if (found.status != Status::kSuccess) return found.status;
  const Chip& chip = current_gpu().chip();
  const Kernel& kernel = *found.kernel;
  *out = {};
  out->sharedSizeBytes = kernel.static_shared_bytes;
  out->localSizeBytes = kernel.local_bytes;
  out->maxThreadsPerBlock = static_cast<int>(max_threads_per_block(kernel, chip));
  out->numRegs = static_cast<int>(known_registers(kernel, chip));
  const std::string& target = kernel.module->text->target;  // "sm_90a"
  out->ptxVersion = target.size() > 3 ? std::atoi(target.c_str() + 3) : 0;
  out->binaryVersion = chip.major * 10 + chip.minor;
  out->maxDynamicSharedSizeBytes =
      static_cast<int>(kernel.max_dynamic_shared_bytes != 0
                           ? kernel.max_dynamic_shared_bytes
                           : chip.shared_per_block - std::min(chip.shared_per_block, kernel.static_shared_bytes));
  out->preferredShmemCarveout = found.function->shared_carveout;
  out->requiredClusterWidth = static_cast<int>(kernel.function->required_cluster[0]);
  out->requiredClusterHeight = static_cast<int>(kernel.function->required_cluster[1]);
  out->requiredClusterDepth = static_cast<int>(kernel.function->required_cluster[2]);
  out->clusterDimMustBeSet = kernel.function->explicit_cluster ? 1 : 0;
  out->nonPortableClusterSizeAllowed = kernel.non_portable_cluster ? 1 : 0;
  return Status::kSuccess;
}

// Occupancy queries want the kernel on the current chip.
template <typename Body>
cudaError_t occupancy(const char* name, const void* host, Body&& body) {
  return call(name, [&] {
    const Registry::Found found = Registry::instance().kernel(host);
    if (found.status != Status::kSuccess) return found.status;
    return body(*found.kernel, current_gpu().chip());
  });
}

Status cluster_of(const cudaLaunchConfig_t* config, const Kernel& kernel, uint32_t* size) {
  if (config == nullptr) return refuse(Status::kInvalidValue, "a null launch configuration");
  LaunchRequest request;
  const Status status = read_attributes(*config, &request);
  if (request.cluster[0] == 0)
    for (int i = 0; i < 3; ++i) request.cluster[i] = kernel.function->required_cluster[i];
  *size = std::max(request.cluster[0], 1u) * std::max(request.cluster[1], 1u) * std::max(request.cluster[2], 1u);
  return status;
}

}  // namespace

extern "C" {

// Registration

void** __cudaRegisterFatBinary(void* wrapper) {
  const Lock lock;
  return reinterpret_cast<void**>(Registry::instance().add_binary(wrapper));
}

void __cudaRegisterFatBinaryEnd(void**) {}

void __cudaUnregisterFatBinary(void** handle) {
  const Lock lock;
  Registry::instance().remove_binary(binary_of(handle));
}

void __cudaRegisterFunction(void** handle, const char* host, char*, const char* name, int, uint3*, uint3*, dim3*, dim3*,
                            int*) {
  const Lock lock;
  Registry::instance().add_function(binary_of(handle), host, name);
}

void __cudaRegisterVar(void** handle, char* host, char*, const char* name, int, size_t bytes, int, int) {
  const Lock lock;
  Registry::instance().add_variable(binary_of(handle), host, name, bytes);
}

void __cudaRegisterManagedVar(void** handle, void** host, char*, const char* name, int, size_t bytes, int, int) {
  const Lock lock;
  Registry::instance().add_managed(binary_of(handle), host, name, bytes);
}

char __cudaInitModule(void** handle) {
  const Lock lock;
  return Registry::instance().place_managed(binary_of(handle)) == Status::kSuccess ? 1 : 0;
}

cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* host) {
  // A handle is the host stub itself: which kernel it stands for depends on the GPU that is current at the launch.
  *kernel = reinterpret_cast<cudaKernel_t>(const_cast<void*>(host));
  return cudaSuccess;
}

cudaError_t CUDARTAPI cudaGetKernel(cudaKernel_t* kernel, const void* host) { return __cudaGetKernel(kernel, host); }

// Launches

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, void* stream) {
  push_configuration({triple(grid), triple(block), shared, stream});
  return 0;
}

cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
  Configuration c;
  const Status status = pop_configuration(&c);
  if (status != Status::kSuccess) return code(status);
  *grid = {c.grid[0], c.grid[1], c.grid[2]};
  *block = {c.block[0], c.block[1], c.block[2]};
  *shared = c.dynamic_shared;
  *static_cast<Handle*>(stream) = c.stream;
  return cudaSuccess;
}

cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void** arguments, size_t shared,
                               cudaStream_t stream) {
  return launch_kernel("cudaLaunchKernel", kernel, grid, block, arguments, shared, stream);
}

cudaError_t __cudaLaunchKernel_ptsz(cudaKernel_t kernel, dim3 grid, dim3 block, void** arguments, size_t shared,
                                    cudaStream_t stream) {
  return launch_kernel("cudaLaunchKernel", kernel, grid, block, arguments, shared, per_thread(stream));
}

cudaError_t CUDARTAPI cudaLaunchKernel(const void* host, dim3 grid, dim3 block, void** arguments, size_t shared,
                                       cudaStream_t stream) {
  return launch_kernel("cudaLaunchKernel", host, grid, block, arguments, shared, stream);
}

cudaError_t cudaLaunchKernel_ptsz(const void* host, dim3 grid, dim3 block, void** arguments, size_t shared,
                                  cudaStream_t stream) {
  return launch_kernel("cudaLaunchKernel", host, grid, block, arguments, shared, per_thread(stream));
}

cudaError_t CUDARTAPI cudaLaunchCooperativeKernel(const void* host, dim3 grid, dim3 block, void** arguments,
                                                  size_t shared, cudaStream_t stream) {
  return launch_kernel("cudaLaunchCooperativeKernel", host, grid, block, arguments, shared, stream, true);
}

cudaError_t cudaLaunchCooperativeKernel_ptsz(const void* host, dim3 grid, dim3 block, void** arguments, size_t shared,
                                             cudaStream_t stream) {
  return launch_kernel("cudaLaunchCooperativeKernel", host, grid, block, arguments, shared, per_thread(stream), true);
}

cudaError_t CUDARTAPI cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* host, void** arguments) {
  return launch_extended("cudaLaunchKernelExC", config, host, arguments, config->stream);
}

cudaError_t cudaLaunchKernelExC_ptsz(const cudaLaunchConfig_t* config, const void* host, void** arguments) {
  return launch_extended("cudaLaunchKernelExC", config, host, arguments, per_thread(config->stream));
}

// Attributes

cudaError_t CUDARTAPI cudaFuncSetAttribute(const void* host, cudaFuncAttribute attribute, int value) {
  return call("cudaFuncSetAttribute", [&] { return set_attribute(host, attribute, value); });
}

cudaError_t CUDARTAPI cudaFuncGetAttributes(cudaFuncAttributes* out, const void* host) {
  return call("cudaFuncGetAttributes", [&] { return get_attributes(out, host); });
}

cudaError_t CUDARTAPI cudaFuncSetCacheConfig(const void* host, cudaFuncCache) {
  return call("cudaFuncSetCacheConfig", [&] { return Registry::instance().kernel(host).status; });
}

cudaError_t CUDARTAPI cudaFuncGetName(const char** name, const void* host) {
  return call("cudaFuncGetName", [&] {
    const Registry::Found found = Registry::instance().kernel(host);
    if (found.status == Status::kSuccess) *name = found.function->name.c_str();
    return found.status;
  });
}

// Occupancy

cudaError_t CUDARTAPI cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const void* host, int threads,
                                                                             size_t shared, unsigned) {
  return occupancy("cudaOccupancyMaxActiveBlocksPerMultiprocessor", host, [&](const Kernel& kernel, const Chip& chip) {
    if (threads <= 0) return refuse(Status::kInvalidValue, "no threads");
    *blocks = static_cast<int>(blocks_per_multiprocessor(kernel, chip, static_cast<uint32_t>(threads), shared));
    return Status::kSuccess;
  });
}

cudaError_t CUDARTAPI cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void* host, int threads,
                                                                    size_t shared) {
  return cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(blocks, host, threads, shared, 0);
}

cudaError_t CUDARTAPI cudaOccupancyAvailableDynamicSMemPerBlock(size_t* bytes, const void* host, int blocks,
                                                                int threads) {
  return occupancy("cudaOccupancyAvailableDynamicSMemPerBlock", host, [&](const Kernel& kernel, const Chip& chip) {
    if (threads <= 0 || blocks <= 0) return refuse(Status::kInvalidValue, "no threads or no blocks");
    *bytes = dynamic_shared_for(kernel, chip, static_cast<uint32_t>(blocks), static_cast<uint32_t>(threads));
    return Status::kSuccess;
  });
}

cudaError_t CUDARTAPI cudaOccupancyMaxPotentialClusterSize(int* size, const void* host, const cudaLaunchConfig_t*) {
  return occupancy("cudaOccupancyMaxPotentialClusterSize", host, [&](const Kernel& kernel, const Chip& chip) {
    const uint32_t limit = max_cluster_size(kernel, chip);
    if (limit == 0) return refuse(Status::kNotSupported, chip.name + " has no clusters");
    *size = static_cast<int>(limit);
    return Status::kSuccess;
  });
}

cudaError_t CUDARTAPI cudaOccupancyMaxActiveClusters(int* clusters, const void* host,
                                                     const cudaLaunchConfig_t* config) {
  return occupancy("cudaOccupancyMaxActiveClusters", host, [&](const Kernel& kernel, const Chip& chip) {
    uint32_t size = 1;
    const Status status = cluster_of(config, kernel, &size);
    if (status != Status::kSuccess) return status;
    if (size > max_cluster_size(kernel, chip))
      return refuse(Status::kInvalidClusterSize, std::to_string(size) + " blocks");
    const uint32_t threads = config->blockDim.x * config->blockDim.y * config->blockDim.z;
    *clusters = static_cast<int>(active_clusters(kernel, chip, size, threads, config->dynamicSmemBytes));
    return Status::kSuccess;
  });
}

}  // extern "C"
