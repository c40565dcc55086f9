// Clusters of blocks: made once for each place that a host thread has, started anew for each number.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "core/block.h"

namespace vgpu {

// Blocks, warps and their register files, which live in `register_files`.
std::unique_ptr<Cluster> make_cluster(Worker& worker, std::vector<std::vector<std::byte>>& register_files);
// Everything as it is when the cluster with this number of the grid begins.
void start_cluster(Worker& worker, Cluster& cluster, uint64_t number);

}  // namespace vgpu
