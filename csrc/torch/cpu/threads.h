// PyTorch's thread pool for the kernels.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "cpu/parallel.h"

namespace moe::torch_ops {

// Threads take the next task when they are done with one.
inline cpu::Parallel torch_threads() {
  const int num_threads = static_cast<int>(torch::stable::get_num_threads());
  return {std::max(num_threads, 1), [](int64_t num_tasks, void (*task)(int64_t, void*), void* context) {
            std::atomic<int64_t> next{0};
            const int64_t workers = std::min<int64_t>(num_tasks, torch::stable::get_num_threads());
            torch::stable::parallel_for(0, workers, 1, [&](int64_t, int64_t) {
              for (int64_t index = next++; index < num_tasks; index = next++) task(index, context);
            });
          }};
}

}  // namespace moe::torch_ops
