#pragma once

#include "core/block.h"

namespace vgpu {

// Throws the Fault that says where each warp of the cluster is and what its barriers miss. `polling`: threads do
// execute, but only poll for what will not happen.
[[noreturn]] void report_deadlock(Cluster& cluster, bool polling);

}  // namespace vgpu
