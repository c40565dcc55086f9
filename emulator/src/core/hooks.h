// What the scheduler asks of the families of instructions.
#pragma once

#include "core/block.h"

namespace vgpu {

// exec/barrier.cpp: after threads exited, barriers that wait for all of the block may be complete.
void recheck_barriers(Block& block);
// exec/cluster.cpp: the same for barrier.cluster.
void recheck_cluster_barrier(Cluster& cluster);
// exec/cp_async.cpp: lets a committed or open cp.async land before anyone waits for it. False: there is none.
bool complete_some_copy(Warp& warp);
// exec/async.cpp: an asynchronous operation takes effect, or its first half does, as the completion policy chooses.
// False: there is none that could.
bool complete_some_async(Cluster& cluster, Worker& worker);
// exec/async.cpp: at the end of a cluster, whatever is still on its way to global memory arrives.
void complete_all_async(Cluster& cluster);
// exec/async.cpp: faults when an operation in flight still uses the shared memory of a block that has ended.
void check_async_at_exit(Block& block);
// exec/setmaxnreg.cpp
void check_register_changes_at_exit(Warp& warp);
// exec/wgmma.cpp
bool in_wgmma_flight(const Warp& warp, uint32_t register_number);
void check_wgmma_at_exit(Warp& warp, const Instruction& i);
// With checks, in kernels that use wgmma: after an instruction that wrote registers.
void wgmma_note_writes(Warp& warp, const Instruction& i);

}  // namespace vgpu
