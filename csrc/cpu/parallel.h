// A fork-join loop that the caller brings along, so that kernels use the host program's thread pool without
// knowing it.
#pragma once

#include <cstdint>

namespace moe::cpu {

struct Parallel {
  int num_threads;
  // Calls task(index, context) for every index in [0, num_tasks), each once, on up to num_threads threads.
  void (*run)(int64_t num_tasks, void (*task)(int64_t index, void* context), void* context);

  // body(index) for every index. Which thread runs which index must not change any result.
  template <class Body>
  void for_each(int64_t num_tasks, const Body& body) const {
    if (num_tasks <= 0) return;
    if (num_tasks == 1 || num_threads == 1) {
      for (int64_t index = 0; index < num_tasks; ++index) body(index);
      return;
    }
    run(
        num_tasks, [](int64_t index, void* context) { (*static_cast<const Body*>(context))(index); },
        const_cast<void*>(static_cast<const void*>(&body)));
  }

  // body(begin, end) over [0, size) cut into one contiguous range per thread, none smaller than grain.
  template <class Body>
  void for_ranges(int64_t size, int64_t grain, const Body& body) const {
    if (size <= 0) return;
    int64_t parts = (size + grain - 1) / grain;
    if (parts > num_threads) parts = num_threads;
    for_each(parts, [&](int64_t part) { body(size * part / parts, size * (part + 1) / parts); });
  }
};

}  // namespace moe::cpu
