// CUDA graphs on the virtual GPU, where torch has neither streams nor graphs of its own.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include "cuda/launch.h"

namespace moe::virtual_gpu {

// What launchers are to use: the default stream, or the one whose work is being captured.
cuda::Stream stream();

// While a graph is captured: keeps memory that its kernels use for as long as the graph lives, as torch's pool of a
// CUDA graph does.
void keep(const torch::stable::Tensor& tensor);

}  // namespace moe::virtual_gpu
