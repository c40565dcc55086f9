// Asynchronous operations of a cluster: bulk and tensor copies, cp.async, and arrives that wait for them.
//
// An operation is made by add_async (core/block.h), given its functions, and submitted. From then on it may take effect
// at any time until something waits for it.
#pragma once

#include <cstdint>

#include "core/access.h"
#include "core/block.h"
#include "core/decode.h"

namespace vgpu {

// With eager completion the operation takes effect now.
void submit_async(Warp& warp, AsyncOperation& operation);

// For the scheduler. One pending operation takes effect, or its first half does, as the completion policy chooses.
// False: there is none that could.
bool complete_some_async(Cluster& cluster, Worker& worker);
// At the end of a cluster: whatever is still on its way to global memory arrives.
void complete_all_async(Cluster& cluster);
// When the last thread of a block has exited: faults when an asynchronous operation still uses its shared memory, or
// may do so for all that the block has waited for.
void check_async_at_exit(Block& block);

// For the scheduler, with random completion: some cp.async of the warp delivers its bytes early. False: it has none.
bool complete_some_copy(Warp& warp);
// What the lanes' cp.async before this number copy is there, and written by them as of now.
void finish_copies(Warp& warp, LaneMask lanes, uint32_t before);

// An address operand of an asynchronous instruction, kept in slot[k] (its base), extra[k] (its offset) and two bits of
// extra[5] (the base has 64 bits; the address is generic).
void set_address(Decoder& decoder, uint32_t k, const ptx::Operand& operand, ptx::Space space);
uint64_t address_of(const Warp& warp, const Instruction& i, uint32_t k, uint32_t lane);
// A shared address of 32 bits; of a generic address its shared part. Faults when it is not a shared address.
uint32_t shared_address_of(Warp& warp, const Instruction& i, uint32_t k, uint32_t lane);
// As shared_place(), aligned; faults when it is the memory of a block that has ended, or, without `cluster`, of
// another.
SharedPlace async_place(Warp& warp, const Instruction& i, uint32_t address, uint32_t bytes, uint32_t align,
                        bool cluster, uint32_t lane);
[[noreturn]] void fault_misaligned(Warp& warp, const Instruction& i, uint64_t address, uint32_t align, uint32_t lane,
                                   const char* what);

// Source of a copy out of shared memory: checked, and not to be written until finish_source().
void begin_source(Warp& warp, const Instruction& i, AsyncOperation& operation, Block& block, uint32_t offset,
                  uint32_t bytes, const char* what);
void finish_source(AsyncOperation& operation, Agent agent, Time time);

// The bytes of a copy are in the block's shared memory, where readers see them once they waited for the mbarrier.
void deliver(Cluster& cluster, Block& block, Mbarrier& barrier, uint32_t offset, uint32_t bytes);
// The time of an asynchronous engine.
Time& async_time(Cluster& cluster, Agent agent);

// "cp.async.bulk": modifiers after those, decoded by bulk_copy.cpp and tensor_copy.cpp.
void decode_bulk(Decoder& decoder);
void decode_bulk_reduction(Decoder& decoder);
void decode_tensor(Decoder& decoder, bool reduction);
// Takes .L2::cache_hint and its operand, when it is there: the last one.
size_t take_cache_hint(Decoder& decoder);

}  // namespace vgpu
