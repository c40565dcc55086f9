// CUDA symbols: the device, its properties, errors, versions.
#include <algorithm>
#include <cstring>
#include <map>

#include "runtime/cudart_support.h"

using namespace vgpu;
using namespace vgpu::runtime;

namespace {

constexpr int kMaxPitch = 0x7fffffff;
constexpr int kConstantBytes = 65536;
constexpr int kGreatestPriority = -5;

int whole(uint64_t value) { return static_cast<int>(std::min<uint64_t>(value, 0x7fffffff)); }

// Only what a program may decide by: textures, surfaces and buses are not emulated, and asking for them is an error.
std::map<int, int> attributes(const Chip& chip) {
  const bool clusters = chip.max_cluster > 1;
  return {
      {cudaDevAttrMaxThreadsPerBlock, whole(chip.max_threads_per_block)},
      {cudaDevAttrMaxBlockDimX, 1024},
      {cudaDevAttrMaxBlockDimY, 1024},
      {cudaDevAttrMaxBlockDimZ, 64},
      {cudaDevAttrMaxGridDimX, 0x7fffffff},
      {cudaDevAttrMaxGridDimY, 65535},
      {cudaDevAttrMaxGridDimZ, 65535},
      {cudaDevAttrMaxSharedMemoryPerBlock, whole(chip.shared_per_block)},
      {cudaDevAttrTotalConstantMemory, kConstantBytes},
      {cudaDevAttrWarpSize, 32},
      {cudaDevAttrMaxPitch, kMaxPitch},
      {cudaDevAttrMaxRegistersPerBlock, whole(chip.registers_per_block)},
      {cudaDevAttrClockRate, chip.clock_khz},
      {cudaDevAttrGpuOverlap, 1},
      {cudaDevAttrMultiProcessorCount, whole(chip.multiprocessors)},
      {cudaDevAttrKernelExecTimeout, 0},
      {cudaDevAttrIntegrated, 0},
      {cudaDevAttrCanMapHostMemory, 1},
      {cudaDevAttrComputeMode, 0},
      {cudaDevAttrConcurrentKernels, 1},
      {cudaDevAttrEccEnabled, 1},
      {cudaDevAttrTccDriver, 0},
      {cudaDevAttrL2CacheSize, whole(chip.l2_bytes)},
      {cudaDevAttrMaxThreadsPerMultiProcessor, whole(chip.max_threads_per_multiprocessor)},
      {cudaDevAttrAsyncEngineCount, 3},
      {cudaDevAttrUnifiedAddressing, 1},
      {cudaDevAttrComputeCapabilityMajor, chip.major},
      {cudaDevAttrComputeCapabilityMinor, chip.minor},
      {cudaDevAttrStreamPrioritiesSupported, 1},
      {cudaDevAttrGlobalL1CacheSupported, 1},
      {cudaDevAttrLocalL1CacheSupported, 1},
      {cudaDevAttrMaxSharedMemoryPerMultiprocessor, whole(chip.shared_per_multiprocessor)},
      {cudaDevAttrMaxRegistersPerMultiprocessor, whole(chip.registers_per_multiprocessor)},
      {cudaDevAttrManagedMemory, 1},
      {cudaDevAttrIsMultiGpuBoard, 0},
      {cudaDevAttrHostNativeAtomicSupported, 0},
      {cudaDevAttrPageableMemoryAccess, 0},
      {cudaDevAttrConcurrentManagedAccess, 1},
      {cudaDevAttrComputePreemptionSupported, 1},
      {cudaDevAttrCanUseHostPointerForRegisteredMem, 1},
      {cudaDevAttrCooperativeLaunch, 1},
      {cudaDevAttrMaxSharedMemoryPerBlockOptin, whole(chip.shared_per_block_optin)},
      {cudaDevAttrHostRegisterSupported, 1},
      {cudaDevAttrPageableMemoryAccessUsesHostPageTables, 0},
      {cudaDevAttrDirectManagedMemAccessFromHost, 0},
      {cudaDevAttrMaxBlocksPerMultiprocessor, whole(chip.max_blocks_per_multiprocessor)},
      {cudaDevAttrReservedSharedMemoryPerBlock, whole(chip.shared_reserved_per_block)},
      {cudaDevAttrMemoryPoolsSupported, 1},
      {cudaDevAttrClusterLaunch, clusters ? 1 : 0},
      {cudaDevAttrIpcEventSupport, 0},
      {cudaDevAttrMpsEnabled, 0},
  };
}

void fill_properties(cudaDeviceProp* p, const Chip& chip) {
  *p = {};
  std::snprintf(p->name, sizeof p->name, "Virtual %s", chip.name.c_str());
  p->totalGlobalMem = chip.global_bytes;
  p->sharedMemPerBlock = chip.shared_per_block;
  p->regsPerBlock = whole(chip.registers_per_block);
  p->warpSize = 32;
  p->memPitch = kMaxPitch;
  p->maxThreadsPerBlock = whole(chip.max_threads_per_block);
  p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024;
  p->maxThreadsDim[2] = 64;
  p->maxGridSize[0] = 0x7fffffff;
  p->maxGridSize[1] = p->maxGridSize[2] = 65535;
  p->totalConstMem = kConstantBytes;
  p->major = chip.major;
  p->minor = chip.minor;
  p->multiProcessorCount = whole(chip.multiprocessors);
  p->canMapHostMemory = 1;
  p->concurrentKernels = 1;
  p->ECCEnabled = 1;
  p->asyncEngineCount = 3;
  p->unifiedAddressing = 1;
  p->l2CacheSize = whole(chip.l2_bytes);
  p->maxThreadsPerMultiProcessor = whole(chip.max_threads_per_multiprocessor);
  p->streamPrioritiesSupported = 1;
  p->globalL1CacheSupported = 1;
  p->localL1CacheSupported = 1;
  p->sharedMemPerMultiprocessor = chip.shared_per_multiprocessor;
  p->regsPerMultiprocessor = whole(chip.registers_per_multiprocessor);
  p->managedMemory = 1;
  p->concurrentManagedAccess = 1;
  p->computePreemptionSupported = 1;
  p->canUseHostPointerForRegisteredMem = 1;
  p->cooperativeLaunch = 1;
  p->sharedMemPerBlockOptin = chip.shared_per_block_optin;
  p->maxBlocksPerMultiProcessor = whole(chip.max_blocks_per_multiprocessor);
  p->reservedSharedMemPerBlock = chip.shared_reserved_per_block;
  p->hostRegisterSupported = 1;
  p->memoryPoolsSupported = 1;
  p->clusterLaunch = chip.max_cluster > 1 ? 1 : 0;
}

Status check_device(int device) {
  return device == 0 ? Status::kSuccess : refuse(Status::kInvalidDevice, "there is only device 0");
}

// The numbers in errors.h are those of this header.
static_assert(static_cast<int>(Status::kInvalidConfiguration) == cudaErrorInvalidConfiguration);
static_assert(static_cast<int>(Status::kInvalidPitchValue) == cudaErrorInvalidPitchValue);
static_assert(static_cast<int>(Status::kInvalidSymbol) == cudaErrorInvalidSymbol);
static_assert(static_cast<int>(Status::kInvalidMemcpyDirection) == cudaErrorInvalidMemcpyDirection);
static_assert(static_cast<int>(Status::kMissingConfiguration) == cudaErrorMissingConfiguration);
static_assert(static_cast<int>(Status::kInvalidDeviceFunction) == cudaErrorInvalidDeviceFunction);
static_assert(static_cast<int>(Status::kNoKernelImageForDevice) == cudaErrorNoKernelImageForDevice);
static_assert(static_cast<int>(Status::kInvalidPtx) == cudaErrorInvalidPtx);
static_assert(static_cast<int>(Status::kIllegalAddress) == cudaErrorIllegalAddress);
static_assert(static_cast<int>(Status::kLaunchOutOfResources) == cudaErrorLaunchOutOfResources);
static_assert(static_cast<int>(Status::kAssert) == cudaErrorAssert);
static_assert(static_cast<int>(Status::kMisalignedAddress) == cudaErrorMisalignedAddress);
static_assert(static_cast<int>(Status::kLaunchFailure) == cudaErrorLaunchFailure);
static_assert(static_cast<int>(Status::kCooperativeLaunchTooLarge) == cudaErrorCooperativeLaunchTooLarge);
static_assert(static_cast<int>(Status::kStreamCaptureUnsupported) == cudaErrorStreamCaptureUnsupported);
static_assert(static_cast<int>(Status::kStreamCaptureUnjoined) == cudaErrorStreamCaptureUnjoined);
static_assert(static_cast<int>(Status::kCapturedEvent) == cudaErrorCapturedEvent);
static_assert(static_cast<int>(Status::kInvalidClusterSize) == cudaErrorInvalidClusterSize);

}  // namespace

extern "C" {

cudaError_t CUDARTAPI cudaGetDeviceCount(int* count) {
  return call("cudaGetDeviceCount", [&] {
    *count = 1;
    return Status::kSuccess;
  });
}

cudaError_t CUDARTAPI cudaGetDevice(int* device) {
  return call("cudaGetDevice", [&] {
    *device = 0;
    return Status::kSuccess;
  });
}

cudaError_t CUDARTAPI cudaSetDevice(int device) {
  return call("cudaSetDevice", [&] { return check_device(device); });
}

cudaError_t CUDARTAPI cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  return call("cudaDeviceGetAttribute", [&] {
    if (const Status status = check_device(device); status != Status::kSuccess) return status;
    const std::map<int, int> known = attributes(current_gpu().chip());
    const auto found = known.find(attribute);
    if (found == known.end())
      return refuse(Status::kInvalidValue, "device attribute " + std::to_string(static_cast<int>(attribute)) +
                                               " is not known to the emulator");
    *value = found->second;
    return Status::kSuccess;
  });
}

cudaError_t CUDARTAPI cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  return call("cudaGetDeviceProperties", [&] {
    if (const Status status = check_device(device); status != Status::kSuccess) return status;
    fill_properties(properties, current_gpu().chip());
    return Status::kSuccess;
  });
}

cudaError_t CUDARTAPI cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  return call("cudaDeviceGetStreamPriorityRange", [&] {
    if (least != nullptr) *least = 0;
    if (greatest != nullptr) *greatest = kGreatestPriority;
    return Status::kSuccess;
  });
}

cudaError_t CUDARTAPI cudaDeviceSynchronize(void) {
  return waiting_call("cudaDeviceSynchronize",
                      [] { return Streams::instance().refuse_wait(nullptr, "cudaDeviceSynchronize"); });
}

cudaError_t CUDARTAPI cudaRuntimeGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}

cudaError_t CUDARTAPI cudaDriverGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}

cudaError_t CUDARTAPI cudaGetLastError(void) {
  const Lock lock;
  return code(current_error(true));
}

cudaError_t CUDARTAPI cudaPeekAtLastError(void) {
  const Lock lock;
  return code(current_error(false));
}

const char* CUDARTAPI cudaGetErrorString(cudaError_t error) { return describe_error(error); }

const char* CUDARTAPI cudaGetErrorName(cudaError_t error) {
  const char* name = error_name(error);
  return name == nullptr ? "unrecognized error code" : name;
}

}  // extern "C"
