// The few functions of the CUDA driver that the runtime hands out as entry points.
#include <cuda.h>

#include <cstring>
#include <map>
#include <string>

#include "runtime/cudart_support.h"
#include "runtime/tensor_map.h"

using namespace vgpu;
using namespace vgpu::runtime;

static_assert(sizeof(CUtensorMap) == sizeof(TensorMap));
static_assert(static_cast<int>(TensorMapType::kBf16) == CU_TENSOR_MAP_DATA_TYPE_BFLOAT16);
static_assert(static_cast<int>(TensorMapType::kU6Align16) == CU_TENSOR_MAP_DATA_TYPE_16U6_ALIGN16B);
static_assert(static_cast<int>(TensorMapSwizzle::k128BAtom64B) == CU_TENSOR_MAP_SWIZZLE_128B_ATOM_64B);
static_assert(static_cast<int>(TensorMapInterleave::k32B) == CU_TENSOR_MAP_INTERLEAVE_32B);

namespace {

constexpr int kFirstMajorWithTensorMaps = 9;

CUresult CUDAAPI encode(CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank, void* address,
                        const cuuint64_t* dims, const cuuint64_t* strides, const cuuint32_t* box,
                        const cuuint32_t* element_strides, CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
                        CUtensorMapL2promotion l2_promotion, CUtensorMapFloatOOBfill fill) {
  const Lock lock;
  ++context().calls.all["cuTensorMapEncodeTiled"];
  if (current_gpu().chip().major < kFirstMajorWithTensorMaps) return CUDA_ERROR_NOT_SUPPORTED;
  return static_cast<CUresult>(encode_tiled(map, type, rank, reinterpret_cast<uint64_t>(address), dims, strides, box,
                                            element_strides, interleave, swizzle, l2_promotion, fill));
}

CUresult CUDAAPI replace(CUtensorMap* map, void* address) {
  const Lock lock;
  return static_cast<CUresult>(replace_address(map, reinterpret_cast<uint64_t>(address)));
}

CUresult CUDAAPI error_string(CUresult error, const char** text) {
  thread_local std::string kept;
  // The driver says only "invalid argument"; the reason of the last refusal is known here.
  if (error == CUDA_SUCCESS)
    kept = "no error";
  else if (error == CUDA_ERROR_INVALID_VALUE)
    kept = "invalid argument" + (last_tensor_map_error().empty() ? "" : ": " + last_tensor_map_error());
  else if (error == CUDA_ERROR_NOT_SUPPORTED)
    kept = "operation not supported";
  else
    return *text = nullptr, CUDA_ERROR_INVALID_VALUE;
  *text = kept.c_str();
  return CUDA_SUCCESS;
}

CUresult CUDAAPI error_name_of(CUresult error, const char** text) {
  static const std::map<int, const char*> kNames{{CUDA_SUCCESS, "CUDA_SUCCESS"},
                                                 {CUDA_ERROR_INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE"},
                                                 {CUDA_ERROR_NOT_SUPPORTED, "CUDA_ERROR_NOT_SUPPORTED"}};
  const auto found = kNames.find(error);
  *text = found == kNames.end() ? nullptr : found->second;
  return found == kNames.end() ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}

CUresult CUDAAPI proc_address(const char* symbol, void** function, int, cuuint64_t,
                              CUdriverProcAddressQueryResult* result);

void* entry_point(const char* symbol) {
  static const std::map<std::string, void*> kKnown{
      {"cuTensorMapEncodeTiled", reinterpret_cast<void*>(&encode)},
      {"cuTensorMapReplaceAddress", reinterpret_cast<void*>(&replace)},
      {"cuGetErrorString", reinterpret_cast<void*>(&error_string)},
      {"cuGetErrorName", reinterpret_cast<void*>(&error_name_of)},
      {"cuGetProcAddress", reinterpret_cast<void*>(&proc_address)},
  };
  const auto found = kKnown.find(symbol);
  return found == kKnown.end() ? nullptr : found->second;
}

CUresult CUDAAPI proc_address(const char* symbol, void** function, int, cuuint64_t,
                              CUdriverProcAddressQueryResult* result) {
  *function = entry_point(symbol);
  if (result != nullptr)
    *result = *function == nullptr ? CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND : CU_GET_PROC_ADDRESS_SUCCESS;
  return *function == nullptr ? CUDA_ERROR_NOT_FOUND : CUDA_SUCCESS;
}

cudaError_t find_entry_point(const char* symbol, void** function, cudaDriverEntryPointQueryResult* result) {
  return call("cudaGetDriverEntryPoint", [&] {
    if (symbol == nullptr || function == nullptr) return refuse(Status::kInvalidValue, "a null pointer");
    *function = entry_point(symbol);
    if (result != nullptr)
      *result = *function == nullptr ? cudaDriverEntryPointSymbolNotFound : cudaDriverEntryPointSuccess;
    // Without a place to report it, a missing symbol is the call's error.
    if (*function == nullptr && result == nullptr)
      return refuse(Status::kSymbolNotFound, std::string(symbol) + " is not emulated");
    return Status::kSuccess;
  });
}

}  // namespace

extern "C" {

cudaError_t CUDARTAPI cudaGetDriverEntryPoint(const char* symbol, void** function, unsigned long long,
                                              cudaDriverEntryPointQueryResult* result) {
  return find_entry_point(symbol, function, result);
}

cudaError_t cudaGetDriverEntryPoint_ptsz(const char* symbol, void** function, unsigned long long,
                                         cudaDriverEntryPointQueryResult* result) {
  return find_entry_point(symbol, function, result);
}

cudaError_t CUDARTAPI cudaGetDriverEntryPointByVersion(const char* symbol, void** function, unsigned,
                                                       unsigned long long, cudaDriverEntryPointQueryResult* result) {
  return find_entry_point(symbol, function, result);
}

cudaError_t cudaGetDriverEntryPointByVersion_ptsz(const char* symbol, void** function, unsigned, unsigned long long,
                                                  cudaDriverEntryPointQueryResult* result) {
  return find_entry_point(symbol, function, result);
}

}  // extern "C"
