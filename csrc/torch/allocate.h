// Fresh tensors for results.
#pragma once

#include <initializer_list>

#include "cpu/scratch.h"
#include "torch/checks.h"

namespace moe::torch_ops {

// An uninitialised contiguous tensor. The system is asked for huge pages behind a large one: a gradient of all experts
// is otherwise slower to touch for the first time than to compute.
inline Tensor allocate(const Tensor& like, std::initializer_list<int64_t> sizes, ScalarType dtype) {
  constexpr int64_t kWorthwhile = int64_t{4} << 20;
  Tensor result = empty_like(like, sizes, dtype);
  const int64_t bytes = result.numel() * static_cast<int64_t>(result.element_size());
  if (bytes >= kWorthwhile) cpu::advise_huge_pages(result.mutable_data_ptr(), bytes);
  return result;
}

}  // namespace moe::torch_ops
