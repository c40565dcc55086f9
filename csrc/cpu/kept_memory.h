// Large blocks of memory that are kept for the next who asks when they are given back. The system fills every fresh
// page with zeros, and for the weight gradients of all experts that takes as long as computing them.
//
// While nobody holds a block the system may take its pages if it runs short (MADV_FREE), so what is kept is never the
// reason for which a process is killed. MOE_EXT_KEPT_MEMORY says how many bytes are kept so, 0 none; by default a
// quarter of the machine's memory. Linux only: elsewhere there are no blocks.
#pragma once

#include <cstdint>

namespace moe::cpu {

// Smaller requests are not worth a block: malloc keeps such memory itself, or the caches forgive it.
inline constexpr int64_t kSmallestKeptBlock = int64_t{4} << 20;

struct KeptBlock {
  void* data;  // 2 MiB aligned, on huge pages where the system grants them
  int64_t bytes;
  int64_t num_forks;
  KeptBlock* next;
};

// A block of at least `bytes` with any contents, or null: too small a request, switched off, or memory is out.
KeptBlock* take_kept_block(int64_t bytes);

// Any thread, at any time, also while the process ends.
void give_back(KeptBlock* block) noexcept;

// Returns the blocks that nobody holds to the system; how many bytes these were.
int64_t release_kept_blocks() noexcept;

// Why MOE_EXT_KEPT_MEMORY could not be followed, or null.
const char* kept_memory_environment_error();

}  // namespace moe::cpu
