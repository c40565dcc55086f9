// Under which name the ops are registered, and for which tensors the CUDA kernels are.
#pragma once

#include <torch/csrc/stable/library.h>

#include "torch/checks.h"

#ifdef MOE_EXT_VIRTUAL  // the CUDA kernels on the virtual GPU: tests only
#define MOE_EXT_OPS moe_ext_virtual
#define MOE_EXT_KERNEL_KEY CPU
#else
#define MOE_EXT_OPS moe_ext
#define MOE_EXT_KERNEL_KEY CUDA
#endif

// The names above are replaced before torch's macros make words of them.
#define MOE_EXT_LIBRARY(name, m) STABLE_TORCH_LIBRARY(name, m)
#define MOE_EXT_LIBRARY_IMPL(name, key, m) STABLE_TORCH_LIBRARY_IMPL(name, key, m)

namespace moe::torch_ops {

#ifdef MOE_EXT_VIRTUAL
constexpr Place kKernelPlace = Place::kCpu;
#else
constexpr Place kKernelPlace = Place::kCuda;
#endif

}  // namespace moe::torch_ops
