#include "cpu/scratch.h"

#include <cstdlib>
#include <mutex>
#include <utility>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace moe::cpu {
namespace {

constexpr int64_t kHugePage = int64_t{2} << 20;

void* allocate(int64_t bytes) {
  const int64_t alignment = bytes >= kHugePage ? kHugePage : 64;
  const int64_t rounded = (bytes + alignment - 1) / alignment * alignment;
  void* data = std::aligned_alloc(alignment, rounded);
  if (data) advise_huge_pages(data, rounded);
  return data;
}

struct ThreadScratch {
  void* data = nullptr;
  int64_t bytes = 0;
  ~ThreadScratch() { std::free(data); }
};

struct KeptWorkspace {
  std::mutex mutex;
  void* data = nullptr;
  int64_t bytes = 0;
};

// Never destroyed: a thread may still give its workspace back while the process ends.
KeptWorkspace& kept() {
  static KeptWorkspace* workspace = new KeptWorkspace;
  return *workspace;
}

}  // namespace

void advise_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] int64_t bytes) {
#ifdef MADV_HUGEPAGE
  const auto begin = (reinterpret_cast<uintptr_t>(data) + kHugePage - 1) / kHugePage * kHugePage;
  const auto end = (reinterpret_cast<uintptr_t>(data) + bytes) / kHugePage * kHugePage;
  if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

void* thread_scratch(int64_t bytes) {
  thread_local ThreadScratch scratch;
  if (bytes > scratch.bytes) {
    std::free(scratch.data);
    scratch.data = allocate(bytes);
    scratch.bytes = scratch.data ? bytes : 0;
  }
  return scratch.data;
}

Workspace::Workspace(int64_t bytes) : bytes_(bytes) {
  if (bytes <= 0) return;
  {
    std::lock_guard lock(kept().mutex);
    const bool fits = kept().bytes >= bytes;
    data_ = std::exchange(kept().data, nullptr);
    const int64_t kept_bytes = std::exchange(kept().bytes, 0);
    if (fits) {
      bytes_ = kept_bytes;
      return;
    }
  }
  // Too small: given back first, or both would count towards the peak.
  std::free(data_);
  data_ = allocate(bytes);
}

Workspace::~Workspace() {
  void* to_free = data_;
  if (data_ && bytes_ <= kKeptBytes) {
    std::lock_guard lock(kept().mutex);
    if (bytes_ > kept().bytes) {
      to_free = std::exchange(kept().data, data_);
      kept().bytes = bytes_;
    }
  }
  std::free(to_free);
}

int64_t release_kept_workspace() {
  void* data;
  int64_t bytes;
  {
    std::lock_guard lock(kept().mutex);
    data = std::exchange(kept().data, nullptr);
    bytes = std::exchange(kept().bytes, 0);
  }
  std::free(data);
  return bytes;
}

}  // namespace moe::cpu
