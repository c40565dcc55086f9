#include "cpu/kept_memory.h"

#include <charconv>
#include <cstdlib>
#include <mutex>
#include <new>
#include <string>
#include <utility>

#include "cpu/scratch.h"

#ifdef __linux__
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace moe::cpu {
namespace {

constexpr int64_t kHugePage = int64_t{2} << 20;

#ifdef __linux__

int64_t default_limit() { return int64_t{sysconf(_SC_PHYS_PAGES)} * sysconf(_SC_PAGESIZE) / 4; }

// Not malloc's memory: of that nobody knows when it goes back to the system.
void* map_pages(int64_t bytes) {
  const int64_t mapped = bytes + kHugePage;
  void* const begin = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (begin == MAP_FAILED) return nullptr;
  const auto address = reinterpret_cast<uintptr_t>(begin);
  const int64_t before = (kHugePage - address % kHugePage) % kHugePage;
  if (before > 0) munmap(begin, before);
  char* const data = static_cast<char*>(begin) + before;
  munmap(data + bytes, kHugePage - before);
  advise_huge_pages(data, bytes);
  return data;
}

void unmap_pages(void* data, int64_t bytes) { munmap(data, bytes); }

void let_system_take_pages([[maybe_unused]] void* data, [[maybe_unused]] int64_t bytes) {
#ifdef MADV_FREE
  madvise(data, bytes, MADV_FREE);
#endif
}

#else

int64_t default_limit() { return 0; }
void* map_pages(int64_t) { return nullptr; }
void unmap_pages(void*, int64_t) {}
void let_system_take_pages(void*, int64_t) {}

#endif

// Unmaps a list of blocks. Returns their bytes.
int64_t unmap_blocks(KeptBlock* block) {
  int64_t bytes = 0;
  while (block) {
    KeptBlock* const next = block->next;
    bytes += block->bytes;
    unmap_pages(block->data, block->bytes);
    delete block;
    block = next;
  }
  return bytes;
}

struct KeptMemory {
  std::mutex mutex;
  int64_t limit = default_limit();
  std::string error;
  KeptBlock* newest = nullptr;  // and by `next` the older ones that nobody holds
  int64_t num_forks = 0;

  KeptMemory() {
    read_environment();
#ifdef __linux__
    pthread_atfork(before_fork, after_fork, after_fork);
#endif
  }

  void read_environment() {
    const char* const given = std::getenv("MOE_EXT_KEPT_MEMORY");
    if (given == nullptr || *given == '\0') return;
    const std::string text = given;
    int64_t bytes = 0;
    const auto [end, failure] = std::from_chars(text.data(), text.data() + text.size(), bytes);
    if (failure != std::errc() || end != text.data() + text.size() || bytes < 0) {
      error = "MOE_EXT_KEPT_MEMORY is '" + text + "', but must be a number of bytes, 0 for none";
      return;
    }
    limit = bytes;
  }

  // The smallest block that fits and wastes no more than an eighth; null if there is none.
  KeptBlock* take(int64_t bytes) {
    KeptBlock** best = nullptr;
    for (KeptBlock** at = &newest; *at; at = &(*at)->next) {
      const int64_t found = (*at)->bytes;
      if (found >= bytes && found <= bytes + bytes / 8 && (!best || found < (*best)->bytes)) best = at;
    }
    return best ? std::exchange(*best, (*best)->next) : nullptr;
  }

  // Takes the oldest out of the list until the rest is no more than `bytes`.
  KeptBlock* take_all_but(int64_t bytes) {
    KeptBlock** at = &newest;
    for (; *at && (*at)->bytes <= bytes; at = &(*at)->next) bytes -= (*at)->bytes;
    return std::exchange(*at, nullptr);
  }

  static void before_fork();
  static void after_fork();
};

// Never destroyed: a tensor may still give its block back while the process ends.
KeptMemory& kept() {
  static KeptMemory* memory = new KeptMemory;
  return *memory;
}

// Pages that a fork shares are copied when they are written, and 4 KiB at a time: dearer than fresh ones. So none is
// kept over a fork, neither what is free (here) nor what is held (num_forks). And a thread that holds the mutex now
// does not exist in the child.
void KeptMemory::before_fork() {
  kept().mutex.lock();
  unmap_blocks(kept().take_all_but(0));
}

void KeptMemory::after_fork() {
  ++kept().num_forks;
  kept().mutex.unlock();
}

}  // namespace

KeptBlock* take_kept_block(int64_t bytes) {
  KeptMemory& memory = kept();
  if (bytes < kSmallestKeptBlock || bytes > memory.limit) return nullptr;
  const int64_t rounded = (bytes + kHugePage - 1) / kHugePage * kHugePage;
  int64_t num_forks;
  {
    std::lock_guard lock(memory.mutex);
    if (KeptBlock* block = memory.take(rounded)) return block;
    num_forks = memory.num_forks;
  }
  void* data = map_pages(rounded);
  if (!data && release_kept_blocks() > 0) data = map_pages(rounded);
  if (!data) return nullptr;
  KeptBlock* block = new (std::nothrow) KeptBlock{data, rounded, num_forks, nullptr};
  if (!block) unmap_pages(data, rounded);
  return block;
}

void give_back(KeptBlock* block) noexcept {
  KeptMemory& memory = kept();
  let_system_take_pages(block->data, block->bytes);
  KeptBlock* leaving = block;
  {
    std::lock_guard lock(memory.mutex);
    if (block->num_forks == memory.num_forks && block->bytes <= memory.limit) {
      block->next = std::exchange(memory.newest, block);
      leaving = memory.take_all_but(memory.limit);
    }
  }
  unmap_blocks(leaving);
}

int64_t release_kept_blocks() noexcept {
  KeptMemory& memory = kept();
  KeptBlock* leaving;
  {
    std::lock_guard lock(memory.mutex);
    leaving = memory.take_all_but(0);
  }
  return unmap_blocks(leaving);
}

const char* kept_memory_environment_error() {
  const std::string& error = kept().error;
  return error.empty() ? nullptr : error.c_str();
}

}  // namespace moe::cpu
