// The activations between the two GEMMs of an expert.
#pragma once

#include <cstdint>

namespace moe {

enum class Activation : int32_t {
  // gated: z = [gate, up]
  kSwiglu,
  kGeglu,
  kGegluTanh,
  kReglu,
  kClampedSwiglu,  // g = min(gate, limit), u = clamp(up, -limit, limit): (u + 1) * g * sigmoid(alpha * g)
  // ungated
  kSilu,
  kGelu,
  kGeluTanh,
  kRelu,
  kRelu2,
};

constexpr bool is_gated(Activation activation) { return activation < Activation::kSilu; }

struct ActivationRule {
  Activation kind;
  double alpha;
  double limit;
};

}  // namespace moe
