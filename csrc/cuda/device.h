// What launchers ask of the current device. Attributes are cheap to query, so nothing is cached.
#pragma once

#include "cuda/launch.h"

namespace moe::cuda {

struct Device {
  int ordinal;
  int capability;  // 80, 86, 89, 90, 100, 120
  int multiprocessors;
  int64_t shared_memory_per_block;  // with opt-in, bytes
  int64_t shared_memory_per_multiprocessor;
};

Outcome current_device(Device& device);

}  // namespace moe::cuda
