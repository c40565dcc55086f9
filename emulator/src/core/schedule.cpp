#include "core/schedule.h"

#include <algorithm>
#include <array>
#include <numeric>

#include "core/cluster.h"
#include "core/deadlock.h"
#include "core/hooks.h"
#include "core/run_warp.h"

namespace vgpu {
namespace {

constexpr uint64_t kSpinning = 20'000;  // instructions without progress after which another cluster is let in
constexpr uint32_t kPollRounds = 200;   // of warps that wait for an mbarrier with nothing in flight
constexpr uint32_t kQuantum = 64;       // instructions, at most, of a warp's turn with checks on
constexpr uint32_t kUncheckedQuantum = 4096;
constexpr uint32_t kPollQuantum = 256;

struct Resident {
  std::unique_ptr<Cluster> cluster;
  bool running = false;
  uint32_t idle_rounds = 0;
  std::vector<std::vector<std::byte>> register_files;
};

// Before times run out the clocks start anew, with everything so far taken as ordered: best while nothing is in flight.
void renew_clocks(Cluster& cluster) {
  constexpr Time kReserve = 4096;
  Time latest = 0;
  for (auto& block : cluster.blocks) {
    for (auto& w : block->warps) latest = std::max(latest, w->clocks.now);
  }
  for (Time t : cluster.async_times) latest = std::max(latest, t);
  if (latest < kMaxTime / 2 || (latest < kMaxTime - kReserve && !cluster.pending.empty())) return;
  cluster.renewed = true;
  for (auto& block : cluster.blocks) {
    block->shadow.forget_order();
    block->remote_touches.clear();
    for (auto& w : block->warps) {
      w->clocks.reset(w->clocks.self, cluster.agents);
      w->fence = Knowledge(cluster.agents);
    }
    for (Barrier& b : block->barriers) {
      b.knowledge.clear();
      b.arrivals.clear();
      b.previous_arrivals.clear();
    }
    for (auto& m : block->mbarriers) {
      m->arriving.clear();
      m->completed.clear();
      m->init_time = 0;
    }
  }
  cluster.cluster_knowledge.clear();
  cluster.cluster_completed.clear();
  for (auto& [key, k] : cluster.published) k.clear();
  std::fill(cluster.async_times.begin(), cluster.async_times.end(), 1);
}

enum class Round : uint8_t { kRan, kStuck, kDone };

// One turn for each warp of the cluster, in random order.
Round run_round(Worker& worker, Resident& resident) {
  Cluster& cluster = *resident.cluster;
  const Options& options = worker.launch->options;
  const bool checks = options.checks;
  std::array<std::pair<uint32_t, uint32_t>, 64> few;
  std::vector<std::pair<uint32_t, uint32_t>> many;
  size_t n = 0;
  const size_t total = cluster.blocks.size() * worker.launch->warps_per_block;
  std::pair<uint32_t, uint32_t>* order = few.data();
  if (total > few.size()) {
    many.resize(total);
    order = many.data();
  }
  for (uint32_t b = 0; b < cluster.blocks.size(); ++b) {
    for (uint32_t w = 0; w < worker.launch->warps_per_block; ++w) {
      if (cluster.blocks[b]->warps[w]->alive != 0) order[n++] = {b, w};
    }
  }
  if (n == 0) return Round::kDone;
  if (checks) {
    for (size_t k = n; k > 1; --k) std::swap(order[k - 1], order[worker.random() % k]);
  }
  uint64_t version = cluster.version;
  bool ran = false, polled = false;
  for (size_t k = 0; k < n; ++k) {
    Warp& warp = *cluster.blocks[order[k].first]->warps[order[k].second];
    if (!can_run(warp)) continue;
    bool polls = all_yielded(warp);
    uint32_t quantum = checks ? 1 + static_cast<uint32_t>(worker.random() % kQuantum) : kUncheckedQuantum;
    // A warp that polls comes to its next poll within its turn, or it would seem to get on.
    if (polls) quantum = std::max(quantum, kPollQuantum);
    uint32_t executed = checks ? run_warp<true>(worker, warp, quantum) : run_warp<false>(worker, warp, quantum);
    if (executed == 0) continue;
    (polls ? polled : ran) = true;
    if (checks && options.completion == Completion::kRandom) {
      uint64_t r = worker.random();
      if ((r & 7) == 0 && !cluster.pending.empty()) complete_some_async(cluster, worker);
      if ((r & 0x700) == 0) complete_some_copy(warp);
    }
  }
  if (checks) renew_clocks(cluster);
  if (cluster.version != version) ran = true;
  if (ran) {
    resident.idle_rounds = 0;
    return Round::kRan;
  }
  if (complete_some_async(cluster, worker)) {
    resident.idle_rounds = 0;
    return Round::kRan;
  }
  if (polled && ++resident.idle_rounds < kPollRounds) return Round::kRan;
  return Round::kStuck;
}

void finish_cluster(Cluster& cluster) {
  for (auto& block : cluster.blocks) check_async_at_exit(*block);
  complete_all_async(cluster);
}

uint64_t permuted(uint64_t k, uint64_t n, uint64_t seed) {
  // Seed 0 keeps the order of hardware; others start anywhere and go in steps that meet every block.
  if (seed == 0 || n < 2) return k;
  uint64_t step = seed * 2654435761u % n;
  while (std::gcd(step == 0 ? n : step, n) != 1) step = (step + 1) % n;
  return (seed * 40503u + k % n * step) % n;
}

}  // namespace

void run_clusters(Worker& worker, std::atomic<uint64_t>& next) {
  Launch& launch = *worker.launch;
  struct Done {
    Worker& worker;
    ~Done() { worker.spinning = true; }
  } done{worker};
  std::vector<std::unique_ptr<Resident>> residents;
  // A worker may always have one; more only while the chip has room.
  auto start_one = [&](bool first) -> bool {
    if (launch.resident.fetch_add(1) >= launch.resident_limit && !first) {
      launch.resident.fetch_sub(1);
      return false;
    }
    uint64_t k = next.fetch_add(1);
    if (k >= launch.clusters) {
      launch.resident.fetch_sub(1);
      return false;
    }
    Resident* free = nullptr;
    for (auto& r : residents) {
      if (!r->running) free = r.get();
    }
    if (free == nullptr) {
      residents.push_back(std::make_unique<Resident>());
      free = residents.back().get();
      free->cluster = make_cluster(worker, free->register_files);
    }
    start_cluster(worker, *free->cluster,
                  permuted(k, launch.clusters, launch.options.checks ? launch.options.seed : 0));
    free->running = true;
    free->idle_rounds = 0;
    return true;
  };
  size_t running = 0;
  if (launch.config.cooperative) {
    while (start_one(true)) ++running;
  }
  uint64_t seen_progress = 0, instructions_then = 0;
  while (!launch.stop.load(std::memory_order_relaxed)) {
    if (running == 0) {
      if (!start_one(true)) return;
      ++running;
    }
    bool all_stuck = true, spinning = false;
    for (size_t k = 0; k < residents.size(); ++k) {
      Resident& r = *residents[k];
      if (!r.running) continue;
      Round round = run_round(worker, r);
      if (round == Round::kDone) {
        finish_cluster(*r.cluster);
        r.running = false;
        launch.resident.fetch_sub(1);
        --running;
        all_stuck = false;
        continue;
      }
      if (round == Round::kRan) all_stuck = false;
      if (r.cluster->instructions_since_progress > kSpinning) spinning = true;
    }
    if (running == 0) continue;
    if ((all_stuck || spinning) && next.load() < launch.clusters) {
      // Twice as many each time: a chain of blocks may reach far.
      size_t started = 0;
      for (size_t want = running; started < want && start_one(false); ++started) ++running;
      if (started != 0) continue;
    }
    if (all_stuck && launch.clusters > 1) {
      // Threads that sleep between polls may wait for another block, maybe one of another worker.
      for (auto& r : residents) {
        if (!r->running || !r->cluster->sleeps) continue;
        all_stuck = false;
        spinning = true;
        r->idle_rounds = 0;
      }
    }
    if (all_stuck) {
      for (auto& r : residents) {
        if (r->running) report_deadlock(*r->cluster, r->idle_rounds > 0);
      }
    }
    worker.spinning.store(spinning, std::memory_order_relaxed);
    // A launch hangs when every worker spins; while one works, others may be waiting for it.
    if (spinning && std::all_of(launch.workers.begin(), launch.workers.end(),
                                [](const Worker* w) { return w->spinning.load(std::memory_order_relaxed); })) {
      uint64_t progress_now = launch.global_progress.load(std::memory_order_relaxed);
      if (progress_now != seen_progress) {
        seen_progress = progress_now;
        instructions_then = worker.total.warp_instructions;
      } else if (worker.total.warp_instructions - instructions_then > launch.options.hang_limit) {
        for (auto& r : residents) {
          if (r->running && r->cluster->instructions_since_progress > kSpinning) report_deadlock(*r->cluster, true);
        }
      }
    }
  }
}

}  // namespace vgpu
