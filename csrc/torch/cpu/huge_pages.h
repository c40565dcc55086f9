// Large results on huge pages.
#pragma once

#include "cpu/scratch.h"
#include "torch/tensors.h"

namespace moe::torch_ops {

// Asks the system for huge pages behind a fresh tensor that is large: a gradient of all experts is otherwise slower to
// touch for the first time than to compute.
inline void ask_for_huge_pages(Tensor& fresh) {
  constexpr int64_t kWorthwhile = int64_t{4} << 20;
  const int64_t bytes = fresh.numel() * static_cast<int64_t>(fresh.element_size());
  if (bytes >= kWorthwhile) cpu::advise_huge_pages(fresh.mutable_data_ptr(), bytes);
}

}  // namespace moe::torch_ops
