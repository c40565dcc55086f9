// Memory that kernels work in: kept from call to call, because the first touch of fresh pages costs more than the
// arithmetic done in them, and backed by huge pages where the system grants them.
#pragma once

#include <cstddef>
#include <cstdint>

namespace moe::cpu {

// The calling thread's scratch, at least `bytes` large and 64-byte aligned, or null when memory is out. It is kept
// until the thread ends and its contents do not survive the next call.
void* thread_scratch(int64_t bytes);

// A buffer for one call. The process keeps one of up to kKeptBytes for the next call that asks.
class Workspace {
 public:
  static constexpr int64_t kKeptBytes = int64_t{256} << 20;

  explicit Workspace(int64_t bytes);
  ~Workspace();
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  // Null when memory is out.
  void* data() const { return data_; }

 private:
  void* data_ = nullptr;
  int64_t bytes_ = 0;
};

// Returns what the process keeps for the next Workspace to the system; how many bytes these were.
int64_t release_kept_workspace();

// Whether results of this size leave the private caches before anybody reads them. A plain store would then first
// fetch the line that it overwrites, and a core waits for no more than some sixteen of those at a time.
inline bool outgrows_caches(int64_t bytes) { return bytes > int64_t{4} << 20; }

// Tells the system that a large buffer, just allocated and not yet touched, may use huge pages.
void advise_huge_pages(void* data, int64_t bytes);

}  // namespace moe::cpu
