// noise for CUDA tensors. Contract: moe/noise.h and schema.cpp.
#include "cuda/noise/noise.h"

#include <string>
#include <vector>

#include "torch/arguments/noise.h"
#include "torch/cuda/launching.h"

namespace moe::torch_ops {

namespace {

Tensor noise(const Tensor& seed, std::vector<int64_t> shape, std::string kind) {
  const Checks checks("noise", kKernelPlace);
  const NoiseArguments a(checks, seed, shape, kind);
  const Launching launching(checks, a.seed);
  launching.is_ok(cuda::noise(a.params, launching.stream()), "shape ", shape_text(a.out));
  return a.out;
}

}  // namespace

}  // namespace moe::torch_ops

MOE_EXT_LIBRARY_IMPL(MOE_EXT_OPS, MOE_EXT_KERNEL_KEY, m) { m.impl("noise", TORCH_BOX(&moe::torch_ops::noise)); }
