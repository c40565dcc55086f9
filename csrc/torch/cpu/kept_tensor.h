// Large fresh tensors whose memory serves the next one when torch frees them.
#pragma once

#include "torch/tensors.h"

namespace moe::torch_ops {

// Like empty_like, for CPU tensors: of 4 MiB and more on a block of cpu/kept_memory.h. Contents are those of whoever
// had the memory before. An ordinary tensor where there is no block, or where torch is older than 2.11.
//
// torch doesn't know how to make memory larger that isn't its own: the storage is not resizable.
Tensor empty_kept(const Tensor& like, torch::headeronly::IntHeaderOnlyArrayRef sizes, ScalarType dtype);

}  // namespace moe::torch_ops
