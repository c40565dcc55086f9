#include "runtime/errors.h"

#include <map>
#include <mutex>
#include <set>

namespace vgpu::runtime {
namespace {

struct Entry {
  const char* name;
  const char* text;
};

const std::map<int, Entry>& entries() {
  static const auto& table = *new std::map<int, Entry>{
      {0, {"cudaSuccess", "no error"}},
      {1, {"cudaErrorInvalidValue", "invalid argument"}},
      {2, {"cudaErrorMemoryAllocation", "out of memory"}},
      {9, {"cudaErrorInvalidConfiguration", "invalid configuration argument"}},
      {12, {"cudaErrorInvalidPitchValue", "invalid pitch argument"}},
      {13, {"cudaErrorInvalidSymbol", "invalid device symbol"}},
      {17, {"cudaErrorInvalidDevicePointer", "invalid device pointer"}},
      {21, {"cudaErrorInvalidMemcpyDirection", "invalid copy direction for memcpy"}},
      {52, {"cudaErrorMissingConfiguration", "__global__ function call is not configured"}},
      {98, {"cudaErrorInvalidDeviceFunction", "invalid device function"}},
      {100, {"cudaErrorNoDevice", "no CUDA-capable device is detected"}},
      {101, {"cudaErrorInvalidDevice", "invalid device ordinal"}},
      {209, {"cudaErrorNoKernelImageForDevice", "no kernel image is available for execution on the device"}},
      {218, {"cudaErrorInvalidPtx", "a PTX JIT compilation failed"}},
      {400, {"cudaErrorInvalidResourceHandle", "invalid resource handle"}},
      {500, {"cudaErrorSymbolNotFound", "named symbol not found"}},
      {600, {"cudaErrorNotReady", "device not ready"}},
      {700, {"cudaErrorIllegalAddress", "an illegal memory access was encountered"}},
      {701, {"cudaErrorLaunchOutOfResources", "too many resources requested for launch"}},
      {702, {"cudaErrorLaunchTimeout", "the launch timed out and was terminated"}},
      {710, {"cudaErrorAssert", "device-side assert triggered"}},
      {715, {"cudaErrorIllegalInstruction", "an illegal instruction was encountered"}},
      {716, {"cudaErrorMisalignedAddress", "misaligned address"}},
      {719, {"cudaErrorLaunchFailure", "unspecified launch failure"}},
      {720, {"cudaErrorCooperativeLaunchTooLarge", "too many blocks in cooperative launch"}},
      {801, {"cudaErrorNotSupported", "operation not supported"}},
      {900, {"cudaErrorStreamCaptureUnsupported", "operation not permitted when stream is capturing"}},
      {901, {"cudaErrorStreamCaptureInvalidated", "operation failed due to a previous error during capture"}},
      {902, {"cudaErrorStreamCaptureMerge", "operation would result in a merge of separate capture sequences"}},
      {903, {"cudaErrorStreamCaptureUnmatched", "capture was not ended in the same stream as it began"}},
      {904, {"cudaErrorStreamCaptureUnjoined", "capturing stream has unjoined work"}},
      {905, {"cudaErrorStreamCaptureIsolation", "dependency created on uncaptured work in another stream"}},
      {906, {"cudaErrorStreamCaptureImplicit", "operation would make the legacy stream depend on a capturing one"}},
      {907, {"cudaErrorCapturedEvent", "operation not permitted on an event last recorded in a capturing stream"}},
      {908, {"cudaErrorStreamCaptureWrongThread", "attempt to terminate a thread-local capture from another thread"}},
      {912, {"cudaErrorInvalidClusterSize", "cluster misconfiguration"}},
      {999, {"cudaErrorUnknown", "unknown error"}},
  };
  return table;
}

struct ThreadErrors {
  Status last = Status::kSuccess;
  std::map<int, std::string> reasons;
};
thread_local ThreadErrors thread_errors;

// Callers keep the pointer that cudaGetErrorString returns.
const char* kept(const std::string& text) {
  static auto& mutex = *new std::mutex;
  static auto& texts = *new std::set<std::string>;
  const std::lock_guard lock(mutex);
  return texts.insert(text).first->c_str();
}

}  // namespace

Status status_of(const Fault& fault) {
  switch (fault.kind) {
    case FaultKind::kOutOfBounds:
    case FaultKind::kUseAfterFree:
      return Status::kIllegalAddress;
    case FaultKind::kMisaligned:
      return Status::kMisalignedAddress;
    case FaultKind::kTrap:
      return fault.message.find("assert") == std::string::npos ? Status::kLaunchFailure : Status::kAssert;
    case FaultKind::kDeadlock:
      return Status::kLaunchTimeout;
    case FaultKind::kUnknownInstruction:
    case FaultKind::kUnsupported:
    case FaultKind::kBadArgument:
    case FaultKind::kBadDescriptor:
      return Status::kIllegalInstruction;
    default:
      return Status::kLaunchFailure;
  }
}

const char* error_name(int code) {
  const auto found = entries().find(code);
  return found == entries().end() ? nullptr : found->second.name;
}

const char* error_text(int code) {
  const auto found = entries().find(code);
  const std::string text = found == entries().end() ? "unrecognized error code" : found->second.text;
  const auto reason = thread_errors.reasons.find(code);
  if (reason == thread_errors.reasons.end()) return kept(text);
  return kept(text + ": " + reason->second);
}

Status refuse(Status status, std::string reason) {
  if (status == Status::kSuccess) return status;
  thread_errors.last = status;
  if (reason.empty())
    thread_errors.reasons.erase(static_cast<int>(status));
  else
    thread_errors.reasons[static_cast<int>(status)] = std::move(reason);
  return status;
}

Status last_error() { return thread_errors.last; }
void clear_last_error() { thread_errors.last = Status::kSuccess; }

}  // namespace vgpu::runtime
