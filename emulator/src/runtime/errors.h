// The errors of the CUDA runtime, by their public numbers, and the reasons that stand behind them.
#pragma once

#include <string>

#include "check/fault.h"

namespace vgpu::runtime {

// A cudaError_t.
enum class Status : int {
  kSuccess = 0,
  kInvalidValue = 1,
  kMemoryAllocation = 2,
  kInvalidConfiguration = 9,
  kInvalidPitchValue = 12,
  kInvalidSymbol = 13,
  kInvalidDevicePointer = 17,
  kInvalidMemcpyDirection = 21,
  kMissingConfiguration = 52,
  kInvalidDeviceFunction = 98,
  kInvalidDevice = 101,
  kNoKernelImageForDevice = 209,
  kInvalidPtx = 218,
  kInvalidResourceHandle = 400,
  kSymbolNotFound = 500,
  kNotReady = 600,
  kIllegalAddress = 700,
  kLaunchOutOfResources = 701,
  kLaunchTimeout = 702,
  kAssert = 710,
  kIllegalInstruction = 715,
  kMisalignedAddress = 716,
  kLaunchFailure = 719,
  kCooperativeLaunchTooLarge = 720,
  kNotSupported = 801,
  kStreamCaptureUnsupported = 900,
  kStreamCaptureInvalidated = 901,
  kStreamCaptureMerge = 902,
  kStreamCaptureUnmatched = 903,
  kStreamCaptureUnjoined = 904,
  kStreamCaptureIsolation = 905,
  kStreamCaptureImplicit = 906,
  kCapturedEvent = 907,
  kStreamCaptureWrongThread = 908,
  kInvalidClusterSize = 912,
  kUnknown = 999,
};

// What the launch that ran into the fault reports.
Status status_of(const Fault& fault);

// "cudaErrorInvalidValue"; null for a number that is not known here.
const char* error_name(int code);
// "invalid argument", with the reason when the last error of this code on this thread had one. Valid for ever.
const char* error_text(int code);

// Notes why, and makes `status` this thread's last error.
Status refuse(Status status, std::string reason = "");
// As cudaPeekAtLastError and cudaGetLastError, sticky errors aside.
Status last_error();
void clear_last_error();

}  // namespace vgpu::runtime
