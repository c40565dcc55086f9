// How many blocks and clusters fit on a chip at once.
#pragma once

#include <cstdint>

#include "core/chip.h"
#include "core/kernel.h"

namespace vgpu::runtime {

// Registers per thread that the PTX promises not to exceed (.maxnreg, or .maxntid with .minnctapersm). 0: not known,
// since only ptxas gives out registers; occupancy is then not limited by them.
uint32_t known_registers(const Kernel& kernel, const Chip& chip);

// Threads a block may have: the chip's limit or the launch bounds of the kernel.
uint32_t max_threads_per_block(const Kernel& kernel, const Chip& chip);

// Resident blocks on one multiprocessor; 0 when not even one fits.
uint32_t blocks_per_multiprocessor(const Kernel& kernel, const Chip& chip, uint32_t threads, uint64_t dynamic_shared);

// Dynamic shared memory that lets `blocks` blocks be resident.
uint64_t dynamic_shared_for(const Kernel& kernel, const Chip& chip, uint32_t blocks, uint32_t threads);

// The largest cluster that the kernel may be launched with; 0 on a chip without clusters.
uint32_t max_cluster_size(const Kernel& kernel, const Chip& chip);

// Clusters resident on the whole chip. How multiprocessors are grouped is not public, so groups are taken to be full.
uint32_t active_clusters(const Kernel& kernel, const Chip& chip, uint32_t cluster, uint32_t threads,
                         uint64_t dynamic_shared);

}  // namespace vgpu::runtime
