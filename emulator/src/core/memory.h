// Global memory: which host addresses kernels may touch, and what is known of their bytes.
//
// Device pointers are host pointers. Whatever lies in no allocation is out of bounds.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <shared_mutex>
#include <string>
#include <vector>

namespace vgpu {

// One bit a byte in `written`; race cells are made per launch (check/global_shadow.h).
struct Allocation {
  uint64_t base = 0;
  uint64_t bytes = 0;
  bool freed = false;
  bool owned = false;                   // from allocate(): red zones around, poisoned when fresh
  bool read_only = false;               // .const variables
  std::string label;                    // for reports: "argument 2", "cudaMalloc #7"
  std::unique_ptr<uint64_t[]> written;  // null: every byte counts as written
  std::unique_ptr<struct RaceCells> cells;
  std::unique_ptr<uint64_t[]> sectors_read, sectors_written;  // one bit a sector of 32 bytes, of the launch that runs
  std::atomic<uint64_t> cells_of_launch{0};                   // the launch that `cells` and the sectors are ready for

  Allocation();
  ~Allocation();
};

constexpr std::byte kPoison{0xFF};  // a NaN in every float format

class Memory {
 public:
  Memory();
  ~Memory();

  // 256-byte aligned, poisoned, with red zones. Nothing counts as written.
  void* allocate(size_t bytes, std::string label);
  // Keeps the range reserved, so that later touches are found, until many later frees. False: not the start of an
  // allocation.
  bool release(void* pointer);
  // Memory that someone else owns. `written` false: as fresh device memory, but its bytes are not changed. A range that
  // overlaps a live one extends or replaces it.
  void add(void* pointer, size_t bytes, std::string label, bool written = true);
  // Forgets a range that was added.
  void remove(void* pointer);
  // The host wrote or the kernel's writes count as such (memcpy, memset). Ranges outside any allocation are ignored.
  void mark_written(const void* pointer, size_t bytes);
  // Fills with poison and counts nothing as written.
  void mark_fresh(void* pointer, size_t bytes);

  // Drops what launches recorded of each other's accesses.
  void forget_races();

  // The allocation that holds the address, live or freed; null when there is none.
  Allocation* find(uint64_t address);
  // "8 bytes past the end of argument 2 (4096 bytes at 0x…)": nearest allocation, for reports.
  std::string describe(uint64_t address);
  size_t live_bytes() const { return live_bytes_; }

 private:
  std::map<uint64_t, std::unique_ptr<Allocation>> by_base_;
  std::vector<uint64_t> freed_;
  mutable std::shared_mutex mutex_;
  size_t live_bytes_ = 0;
  uint64_t counter_ = 0;
};

}  // namespace vgpu
