// Runs the clusters of a launch on one host thread.
#pragma once

#include <atomic>

#include "core/block.h"

namespace vgpu {

// Takes cluster numbers from `next` until there are none. Throws Fault.
void run_clusters(Worker& worker, std::atomic<uint64_t>& next);

}  // namespace vgpu
