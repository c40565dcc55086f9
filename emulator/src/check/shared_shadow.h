// What is known of each granule of a block's shared memory: who wrote it last, who read it since, what is in flight.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "check/clocks.h"

namespace vgpu {

struct Block;

// agent:9 | lane:6 | time:17. 0: never written. kKnownToAll: written, ordered before everything.
using Cell = uint32_t;
constexpr Cell kKnownToAll = 1;
constexpr Agent kPendingAgent = 511;  // an asynchronous write is under way
constexpr Cell make_cell(Agent agent, uint32_t lane, Time time) { return agent << 23 | lane << 17 | time; }
constexpr Agent agent_of(Cell c) { return c >> 23; }
constexpr uint32_t lane_of(Cell c) { return c >> 17 & 63; }
constexpr Time time_of(Cell c) { return c & kMaxTime; }

// A range that an asynchronous operation still reads.
struct PendingRead {
  uint32_t begin, end;  // offsets in the block's shared memory
  uint64_t id;
  uint32_t pc;
  const char* what;  // "wgmma", "bulk store"
};

// All offsets are within `block`, which may be another block of the warp's cluster; `lane` may be kWholeWarp.
// Functions that take a warp throw a Fault through it when the access is not ordered, too early, or of unwritten bytes.
class SharedShadow {
 public:
  void reset(uint32_t bytes, uint32_t granule, size_t agents);

  void read(Warp& warp, const Instruction& i, Block& block, uint32_t lane, uint32_t offset, uint32_t bytes);
  // As read(), by the async proxy: also wants a proxy fence after ordinary writes.
  void read_by_proxy(Warp& warp, const Instruction& i, Block& block, uint32_t offset, uint32_t bytes);

  // A write is checked for all lanes of an instruction before it is recorded for any, so that lanes of one instruction
  // do not race with each other. record_write() returns true when another lane of this instruction wrote there too.
  void check_write(Warp& warp, const Instruction& i, Block& block, uint32_t lane, uint32_t offset, uint32_t bytes) {
    check_order_of_writes(warp, i, block, lane, offset, bytes);
    check_reads(warp, i, block, lane, offset, bytes);
  }
  // Its two halves: after other writes, after other reads.
  void check_order_of_writes(Warp& warp, const Instruction& i, Block& block, uint32_t lane, uint32_t offset,
                             uint32_t bytes, bool proxy = false);
  void check_reads(Warp& warp, const Instruction& i, Block& block, uint32_t lane, uint32_t offset, uint32_t bytes);
  bool record_write(Warp& warp, const Instruction& i, uint32_t lane, uint32_t offset, uint32_t bytes);
  void write(Warp& warp, const Instruction& i, Block& block, uint32_t lane, uint32_t offset, uint32_t bytes) {
    check_write(warp, i, block, lane, offset, bytes);
    record_write(warp, i, lane, offset, bytes);
  }
  // Atomics, and strong (volatile, relaxed, …) reads and writes: no race with each other.
  void atomic(Warp& warp, const Instruction& i, Block& block, uint32_t lane, uint32_t offset, uint32_t bytes);
  void strong_read(Warp& warp, const Instruction& i, Block& block, uint32_t lane, uint32_t offset, uint32_t bytes);
  void strong_write(Warp& warp, const Instruction& i, Block& block, uint32_t lane, uint32_t offset, uint32_t bytes);

  // An asynchronous write begins: checked like a write of the issuing warp, then in flight until finish_write().
  // `proxy`: through the async proxy, which wants a proxy fence after ordinary writes.
  void begin_write(Warp& warp, const Instruction& i, Block& block, uint32_t lane, uint32_t offset, uint32_t bytes,
                   bool proxy = false);
  void finish_write(Agent agent, uint32_t lane, Time time, uint32_t offset, uint32_t bytes);

  void begin_read(const PendingRead& read) { pending_reads_.push_back(read); }
  // The range counts as read by this agent at this time.
  void finish_read(uint64_t id, Agent agent, Time time);
  const std::vector<PendingRead>& pending_reads() const { return pending_reads_; }
  // Written, ordered before everything (mbarrier objects).
  void mark_known(uint32_t offset, uint32_t bytes);
  // After the clocks of the cluster started anew: everything counts as ordered.
  void forget_order();

 private:
  void check_cell(Warp& warp, const Instruction& i, Block& block, uint32_t lane, size_t granule, Cell cell, bool writes,
                  bool proxy);
  std::vector<Cell>& reads_of(Agent agent);
  std::string describe(const Warp& warp, size_t granule, Cell cell) const;
  size_t first(uint32_t offset) const { return offset >> shift_; }
  size_t last(uint32_t offset, uint32_t bytes) const { return (offset + bytes - 1) >> shift_; }

  uint32_t shift_ = 2;
  size_t granules_ = 0;
  std::vector<Cell> writes_;
  std::vector<uint32_t> write_pcs_;
  std::vector<std::vector<Cell>> reads_;  // by agent; empty until it first reads
  std::vector<Agent> readers_;            // agents whose reads_ are not empty
  std::vector<Cell> atomics_;  // equals writes_ where the last write was atomic or strong; empty until needed
  std::vector<PendingRead> pending_reads_;
};

}  // namespace vgpu
