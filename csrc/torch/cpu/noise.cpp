// noise for CPU tensors. Contract: moe/noise.h and schema.cpp.
#include "cpu/noise/noise.h"

#include <torch/csrc/stable/library.h>

#include <string>
#include <vector>

#include "torch/arguments/noise.h"
#include "torch/cpu/huge_pages.h"
#include "torch/cpu/threads.h"

namespace moe::torch_ops {

namespace {

Tensor noise(const Tensor& seed, std::vector<int64_t> shape, std::string kind) {
  const Checks checks("noise");
  NoiseArguments a(checks, seed, shape, kind);
  ask_for_huge_pages(a.out);
  checks.is_ok(cpu::noise(a.params, torch_threads()));
  return a.out;
}

}  // namespace

}  // namespace moe::torch_ops

STABLE_TORCH_LIBRARY_IMPL(moe_ext, CPU, m) { m.impl("noise", TORCH_BOX(&moe::torch_ops::noise)); }
