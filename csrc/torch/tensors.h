// Fresh and contiguous tensors.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>

#ifdef MOE_EXT_VIRTUAL
#include "runtime/context.h"
#include "virtual/capture.h"
#endif

namespace moe::torch_ops {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The tensor itself if its last dimension has unit stride, else a contiguous copy.
inline Tensor with_unit_inner_stride(const Tensor& tensor) {
  const int64_t last = tensor.dim() - 1;
  return tensor.size(last) <= 1 || tensor.stride(last) == 1 ? tensor : torch::stable::contiguous(tensor);
}

// Uninitialised and contiguous, on the device of `like`. On the virtual GPU nothing of it counts as written.
inline Tensor empty_like(const Tensor& like, torch::headeronly::IntHeaderOnlyArrayRef sizes, ScalarType dtype) {
#ifdef MOE_EXT_VIRTUAL
  struct Fresh {
    Fresh() { vgpu::runtime::enter_fresh_memory(); }
    ~Fresh() { vgpu::runtime::leave_fresh_memory(); }
  } fresh;
  const Tensor result = torch::stable::new_empty(like, sizes, dtype);
  virtual_gpu::keep(result);
  return result;
#else
  return torch::stable::new_empty(like, sizes, dtype);
#endif
}

// Who makes a tensor: empty_like, or where a backend has a better place for it, a function that promises the same.
using Allocate = Tensor (*)(const Tensor& like, torch::headeronly::IntHeaderOnlyArrayRef sizes, ScalarType dtype);

}  // namespace moe::torch_ops
