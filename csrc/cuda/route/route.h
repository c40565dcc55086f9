// route on CUDA. Contract: moe/route.h.
//
// One launch forward and one backward; two forward where statistics are wanted of more than a few tokens. ids, weights
// and score_sums of float32, bfloat16 and float16 logits have the same bits on every device, and ids and weights those
// of the CPU.
//
// nonfinite = kError asserts on the device, as PyTorch's own kernels do: the launch succeeds, and the stream fails with
// cudaErrorAssert. The message names no row.
#pragma once

#include "cuda/launch.h"
#include "moe/route.h"

namespace moe::cuda {

// Reads sizes, and which of params.statistics are null. 0 for up to 512 experts and 32 choices of logits up to 32 bits
// wide, and without statistics; most other sizes need none either.
int64_t route_forward_workspace_bytes(const RouteParams& params);
Outcome route_forward(const RouteParams& params, void* workspace, Stream stream);
Outcome route_backward(const RouteBackwardParams& params, Stream stream);

}  // namespace moe::cuda
