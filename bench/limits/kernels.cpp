// What the CPU and its memory can do, for bench.limits: arithmetic in registers (peaks.h), memory (streams.h) and the
// first touch of fresh pages. All threads start together, each on a CPU of its own; a rate is that of the best trial.
#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <iterator>
#include <thread>
#include <vector>

#include "peaks.h"
#include "streams.h"

namespace limits {
namespace {

using Clock = std::chrono::steady_clock;

std::vector<int> allowed_cpus() {
  cpu_set_t set;
  std::vector<int> cpus;
  if (sched_getaffinity(0, sizeof set, &set) == 0)
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu)
      if (CPU_ISSET(cpu, &set)) cpus.push_back(cpu);
  return cpus;
}

void pin(int cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cpu, &set);
  pthread_setaffinity_np(pthread_self(), sizeof set, &set);
}

// Seconds from the first start to the last end of work(thread).
template <class Work>
double seconds_of(int threads, Work work) {
  const std::vector<int> cpus = allowed_cpus();
  std::atomic<int> waiting{threads};
  std::vector<Clock::time_point> starts(threads), ends(threads);
  std::vector<std::thread> pool;
  for (int thread = 0; thread < threads; ++thread)
    pool.emplace_back([&, thread] {
      if (!cpus.empty()) pin(cpus[thread % cpus.size()]);
      for (waiting.fetch_sub(1); waiting.load() > 0;) std::this_thread::yield();
      starts[thread] = Clock::now();
      work(thread);
      ends[thread] = Clock::now();
    });
  for (auto& thread : pool) thread.join();
  const auto span = *std::max_element(ends.begin(), ends.end()) - *std::min_element(starts.begin(), starts.end());
  return std::chrono::duration<double>(span).count();
}

// Work per second: `work(thread, passes)` does passes * amount. The number of passes grows until a trial is long
// enough; of several, so that one that was interrupted doesn't count as long.
template <class Work>
double rate_of(int threads, double amount, double seconds, int trials, Work work) {
  long passes = 1;
  const auto quickest = [&](int repeats) {
    double best = seconds_of(threads, [&](int thread) { work(thread, passes); });
    while (--repeats > 0) best = std::min(best, seconds_of(threads, [&](int thread) { work(thread, passes); }));
    return best;
  };
  for (double taken; (taken = quickest(3)) < seconds / 2;) passes *= taken > seconds / 16 ? 2 : 8;
  return threads * amount * passes / quickest(trials);
}

// Fresh zeroed memory at a multiple of a huge page, wished to be of huge pages or not.
class Pages {
 public:
  Pages(std::size_t bytes, bool huge) : size_(bytes + kHuge) {
    base_ = static_cast<char*>(mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (base_ == MAP_FAILED) {
      base_ = nullptr;
      return;
    }
    madvise(base_, size_, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
    data = reinterpret_cast<char*>((reinterpret_cast<std::uintptr_t>(base_) + kHuge - 1) / kHuge * kHuge);
  }
  Pages(Pages&& other) noexcept : data(other.data), base_(other.base_), size_(other.size_) { other.base_ = nullptr; }
  ~Pages() {
    if (base_) munmap(base_, size_);
  }
  char* data = nullptr;  // null: there is no such memory

 private:
  static constexpr std::size_t kHuge = 2u << 20;
  char* base_;
  std::size_t size_;
};

std::vector<Pages> pages_for(int threads, std::size_t bytes, bool huge) {
  std::vector<Pages> pages;
  for (int thread = 0; thread < threads; ++thread) pages.emplace_back(bytes, huge);
  return pages;
}

bool complete(const std::vector<Pages>& pages) {
  return std::all_of(pages.begin(), pages.end(), [](const Pages& own) { return own.data != nullptr; });
}

}  // namespace
}  // namespace limits

extern "C" {

int limits_units() { return static_cast<int>(std::size(limits::kUnits)); }
const char* limits_unit(int unit) { return limits::kUnits[unit].name; }
int limits_present(int unit) { return limits::kUnits[unit].present(); }

// Operations per second of a unit that is present.
double limits_peak(int unit, int threads, double seconds, int trials) {
  const limits::Unit& own = limits::kUnits[unit];
  return limits::rate_of(threads, own.operations, seconds, trials, [&](int, long passes) { own.run(passes); });
}

int limits_ways() { return static_cast<int>(std::size(limits::kWays)); }
const char* limits_way(int way) { return limits::kWays[way].name; }

// Bytes per second on `bytes` (a multiple of 4 KiB) of each thread's own memory, in huge pages; 0 where there is no
// such memory.
double limits_bandwidth(int way, int threads, std::size_t bytes, double seconds, int trials) {
  const auto pages = limits::pages_for(threads, bytes, true);
  if (!limits::complete(pages)) return 0;
  limits::seconds_of(threads, [&](int thread) { std::memset(pages[thread].data, 1, bytes); });
  return limits::rate_of(threads, static_cast<double>(bytes), seconds, trials, [&](int thread, long passes) {
    for (long pass = 0; pass < passes; ++pass) limits::kWays[way].run(pages[thread].data, bytes);
  });
}

// Bytes per second at which memory that nobody used yet appears, one word written in each 4 KiB.
double limits_first_touch(int threads, std::size_t bytes, int huge, int trials) {
  double best = 0;
  for (; trials > 0; --trials) {
    const auto pages = limits::pages_for(threads, bytes, huge != 0);
    if (!limits::complete(pages)) return 0;
    const double taken = limits::seconds_of(threads, [&](int thread) {
      for (std::size_t i = 0; i < bytes; i += 4096) *reinterpret_cast<volatile char*>(pages[thread].data + i) = 1;
    });
    best = std::max(best, threads * static_cast<double>(bytes) / taken);
  }
  return best;
}
}
