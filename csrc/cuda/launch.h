// What every CUDA launcher takes and returns. Launchers never throw and never wait for the device.
#pragma once

#include <cstdint>

#include "moe/types.h"

namespace moe::cuda {

using Stream = void*;  // a cudaStream_t; null is the default stream

struct Outcome {
  Status status = Status::kOk;
  int32_t cuda_error = 0;        // a cudaError_t, with Status::kLaunchFailed
  const char* kernel = nullptr;  // what failed

  bool ok() const { return status == Status::kOk; }
};

// "invalid configuration argument (9)"; on the virtual GPU the report of the fault.
const char* error_text(int32_t cuda_error);

}  // namespace moe::cuda
