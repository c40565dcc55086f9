// The arguments of noise, checked, and its result, allocated.
#pragma once

#include <string>
#include <vector>

#include "moe/noise.h"
#include "torch/checks.h"

namespace moe::torch_ops {

// Holds every tensor that params points into.
struct NoiseArguments {
  NoiseParams params = {};
  Tensor seed, out;

  NoiseArguments(const Checks& checks, const Tensor& given_seed, const std::vector<int64_t>& shape,
                 const std::string& kind) {
    checks.has_dims(given_seed, "seed", 1, "[1]");
    checks.has_size(given_seed, "seed", 0, 1, "one value");
    checks.has_dtype(given_seed, "seed", ScalarType::Long);
    seed = given_seed;
    params.kind = static_cast<NoiseKind>(checks.choice(kind, "kind", {"uniform", "normal", "gumbel"}));
    constexpr int64_t kMost = int64_t{1} << 60;
    params.count = 1;
    for (const int64_t size : shape) {
      checks.check(size >= 0, "shape must not have negative sizes, got ", size);
      checks.check(size == 0 || params.count <= kMost / size, "shape has more than 2^60 elements");
      params.count *= size;
    }
    out = empty_like(seed, shape, ScalarType::Float);
    params.seed = Checks::data<int64_t>(seed);
    params.out = static_cast<float*>(out.mutable_data_ptr());
  }
};

}  // namespace moe::torch_ops
