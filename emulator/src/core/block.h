// A block (CTA), the cluster it is in, and what its warps wait at.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <unordered_map>
#include <vector>

#include "check/global_shadow.h"
#include "check/shared_shadow.h"
#include "core/gpu.h"
#include "core/kernel.h"
#include "core/warp.h"

namespace vgpu {

// bar / barrier of one number.
struct Barrier {
  uint32_t expected = 0;  // threads; 0: all of the block. Set by the first to arrive
  uint32_t arrived = 0;
  uint32_t first_pc = 0;
  const Warp* first_warp = nullptr;
  bool active = false;
  uint8_t kind = 0;        // exec/barrier.cpp: .sync and .arrive, or a .red
  uint32_t reduction = 0;  // .red: popc, and, or so far
  Knowledge knowledge{0};
  struct Arrival {
    Agent agent;
    Time time;
    uint32_t pc;
  };
  std::vector<Arrival> arrivals, previous_arrivals;  // of this use and of the one before; with checks only
};

// An mbarrier object. Its 64-bit word in shared memory holds only `word`, so that it can be told from plain data.
struct Mbarrier {
  uint32_t offset = 0;  // in the block's shared memory
  uint32_t count = 0;   // arrivals a phase wants
  int64_t pending = 0;  // arrivals still wanted in this phase
  int64_t transactions =
      0;               // bytes still expected (may go below zero for a while: a copy may land before its expect_tx)
  uint64_t phase = 0;  // number of the current phase
  bool live = true;
  uint32_t init_pc = 0;
  // Who initialised it. `init_fenced`: fence.mbarrier_init followed, so any later cluster barrier orders it.
  Agent init_agent = 0;
  uint32_t init_lane = 0;
  Time init_time = 0;
  bool init_fenced = false;
  uint64_t init_cluster_phase = 0;
  uint32_t in_flight = 0;         // asynchronous operations that will complete on it
  bool phase_has_bytes = false;   // bytes were delivered in the current phase
  uint64_t delivered_phases = 0;  // phases up to and including the last one with bytes
  uint64_t observed_phases = 0;   // phases that a wait found complete
  uint32_t delivered_pc = 0;      // of the copy that delivered last
  Agent agent = 0;                // of the copies that complete on it
  uint64_t word = 0;
  Knowledge arriving;   // of the current phase
  Knowledge completed;  // of all completed phases
};

struct Cluster;

struct Block {
  Cluster* cluster = nullptr;
  uint32_t rank = 0;  // in the cluster
  std::array<uint32_t, 3> id{};
  std::vector<std::byte> shared;  // [0, 1024) is no one's
  SharedShadow shadow;
  std::vector<std::unique_ptr<Warp>> warps;
  uint32_t threads = 0;
  uint32_t exited = 0;  // threads
  std::array<Barrier, 16> barriers;
  // The last access of each other block's warp to this shared memory: it must be ordered before this block ends.
  struct RemoteTouch {
    Agent agent;
    Time time;
    uint32_t pc;
  };
  std::vector<RemoteTouch> remote_touches;
  std::vector<std::unique_ptr<Mbarrier>> mbarriers;

  // The live mbarrier at this offset; null when there is none.
  Mbarrier* find_mbarrier(uint32_t offset);
};

// A bulk or tensor copy, or an arrive that waits for copies, that has not taken effect.
struct AsyncOperation {
  uint64_t id = 0;
  Warp* warp = nullptr;  // that issued it
  uint32_t lane = 0;
  uint32_t pc = 0;
  const Instruction* instruction = nullptr;
  Block* reads = nullptr;   // whose shared memory it reads
  Block* writes = nullptr;  // whose shared memory it writes
  bool done = false;        // took effect; kept until its bulk group was waited for
  bool read_awaited = false;
  bool bulk_group = false;            // completes by bulk group, not by mbarrier
  uint32_t group = 0;                 // number of the bulk group of its lane
  bool source_read = false;           // the first half is done: shared memory was read
  std::function<void()> read_source;  // stores: takes the bytes out of shared memory; may be empty
  std::function<void()> complete;     // takes effect: writes, completes transactions
  std::function<bool()> ready;        // may be empty: always
  std::string what;
};

// Bytes of global memory that a bulk store writes at some time before its thread's wait_group (not .read).
struct UnawaitedWrite {
  const Warp* warp;
  uint32_t lane, group, pc;
  uint64_t begin, end;
};

struct Cluster {
  Launch* launch = nullptr;
  uint64_t number = 0;  // linear, in the grid of clusters
  std::vector<std::unique_ptr<Block>> blocks;
  std::vector<std::unique_ptr<AsyncOperation>> pending;
  uint64_t next_async = 1;
  std::vector<UnawaitedWrite> unawaited_writes;
  // Changes whenever something happens that a waiting lane may wait for.
  uint64_t version = 0;
  uint64_t instructions_since_progress = 0;
  // barrier.cluster
  uint32_t cluster_arrived = 0;  // threads
  uint64_t cluster_phase = 0;
  Knowledge cluster_knowledge, cluster_completed;
  size_t agents = 0;
  uint32_t next_async_agent = 0;  // mbarriers take them in turn; the last is shared when they run out
  // What fences and atomics on shared memory published, by rank << 32 | offset.
  std::unordered_map<uint64_t, Knowledge> published;
  std::unordered_map<uint64_t, Time> unfenced_clusters;  // the same, read by relaxed loads that no fence followed yet
  std::unordered_map<uint64_t, Time> other_clusters;     // (cluster << 9 | agent) → time known through global atomics
  // Tensor maps that a kernel changed → whether a fence.proxy.tensormap acquired them since.
  std::unordered_map<uint64_t, bool> modified_maps;
  bool acquired_globally = false;
  bool sleeps = false;              // a thread executed nanosleep
  bool renewed = false;             // its clocks started anew: times of before mean nothing any more
  bool dependency_resolved = true;  // griddepcontrol.wait was executed, or is not needed

  std::vector<Time> async_times;  // by async agent
};

// Wakes whoever waits: a barrier completed, a phase flipped, an async operation took effect, a warp ended.
inline void progress(Warp& warp) {
  Cluster& cluster = *warp.block->cluster;
  ++cluster.version;
  cluster.instructions_since_progress = 0;
}

// Everything that the blocks of one launch share.
struct Launch {
  Gpu* gpu = nullptr;
  const Kernel* kernel = nullptr;
  const Program* program = nullptr;
  LaunchConfig config;
  Options options;
  Chip chip;
  std::vector<std::byte> parameters;
  uint32_t shared_bytes = 0;  // 1024 + static + dynamic
  uint32_t warps_per_block = 0;
  uint32_t blocks_per_cluster = 1;
  uint64_t clusters = 0;
  uint64_t cooperative_workspace = 0;  // its address; zeros at the start
  uint8_t tag = 0;                     // of this launch in global race cells
  uint64_t number = 0;
  std::unique_ptr<GlobalKnowledge> global_knowledge = std::make_unique<GlobalKnowledge>();
  std::atomic<bool> published{false};
  std::atomic<uint64_t> global_progress{0};  // changes when a store or an atomic of any block takes effect
  // griddepcontrol.launch_dependents was executed: a dependent launch may start before this one's end.
  std::atomic<bool> let_dependents_in{false};
  bool overlaps_predecessor = false;  // this launch is such a dependent
  std::atomic<bool> stop{false};      // another worker found a fault
  uint64_t resident_limit = 0;        // clusters that the chip holds at once
  std::atomic<uint64_t> resident{0};
  std::vector<struct Worker*> workers;
  std::mutex cells_mutex;  // making Allocation::cells
};

constexpr uint32_t kSharedBase = 1024;
constexpr uint32_t kAsyncAgents = 24;  // per cluster

// One host thread's part of a launch.
struct Worker {
  Launch* launch = nullptr;
  std::mt19937_64 random;
  std::vector<Counters> counters;  // by instruction; empty when off
  Counters total;
  uint64_t sectors_read = 0, sectors_written = 0;         // distinct, that this worker touched first
  std::array<struct Allocation*, 6> known_allocations{};  // met in this launch
  uint32_t next_known = 0;
  std::atomic<bool> spinning{false};  // its threads only poll; also set when it has ended
};

inline bool Warp::checks() const { return launch->options.checks; }
inline Worker& worker(const Warp& warp) { return *warp.worker; }
// The counters of the instruction, or null with counters off.
inline Counters* counters(const Warp& warp, const Instruction& i) {
  auto& all = worker(warp).counters;
  return all.empty() ? nullptr : &all[i.index];
}

// Async operations of the cluster: completed by the scheduler as late as the completion policy says.
AsyncOperation& add_async(Warp& warp, const Instruction& i, uint32_t lane, std::string what);
// Completes whatever of the lane's bulk groups is older than the newest `keep`; `.read`: only the reading of sources.
void wait_bulk_groups(Warp& warp, const Instruction& i, LaneMask lanes, uint32_t keep, bool read_only);

// mbarrier bookkeeping, shared by several instruction families.
Mbarrier& mbarrier_at(Warp& warp, const Instruction& i, Block& block, uint32_t offset, uint32_t lane);
void mbarrier_arrive(Warp& warp, const Instruction& i, Mbarrier& barrier, uint32_t count, uint32_t lane);
// `bytes` were delivered (positive) or are expected (negative value: expect).
void mbarrier_complete_bytes(Cluster& cluster, Mbarrier& barrier, int64_t bytes);
void mbarrier_check_phase(Cluster& cluster, Mbarrier& barrier);

}  // namespace vgpu
