// Activations and their gradients over one run of columns, in the accumulator type.
#pragma once

#include "cpu/vectorized/math.h"
#include "moe/activation.h"

namespace moe::cpu::MOE_ISA {

// value(x) and slope(x) of the function that gates, or that an ungated expert applies.
template <Activation kKind, class A>
MOE_INLINE A gate_value(A x) {
  if constexpr (kKind == Activation::kSwiglu || kKind == Activation::kSilu) {
    return x * sigmoid(x);
  } else if constexpr (kKind == Activation::kGeglu || kKind == Activation::kGelu) {
    return x * (A(0.5) * (A(1) + erf(x * A(0.70710678118654752))));
  } else if constexpr (kKind == Activation::kGegluTanh || kKind == Activation::kGeluTanh) {
    return x * (A(0.5) * (A(1) + tanh(A(0.79788456080286536) * (x + A(0.044715) * x * x * x))));
  } else if constexpr (kKind == Activation::kReglu || kKind == Activation::kRelu) {
    return x <= A(0) ? A(0) : x;
  } else {
    static_assert(kKind == Activation::kRelu2);
    return x <= A(0) ? A(0) : x * x;
  }
}

template <Activation kKind, class A>
MOE_INLINE A gate_slope(A x) {
  if constexpr (kKind == Activation::kSwiglu || kKind == Activation::kSilu) {
    const A s = sigmoid(x);
    return s * (A(1) + x * (A(1) - s));
  } else if constexpr (kKind == Activation::kGeglu || kKind == Activation::kGelu) {
    const A density = A(0.39894228040143268) * exp(A(-0.5) * x * x);
    return A(0.5) * (A(1) + erf(x * A(0.70710678118654752))) + x * density;
  } else if constexpr (kKind == Activation::kGegluTanh || kKind == Activation::kGeluTanh) {
    const A c = A(0.79788456080286536), t = tanh(c * (x + A(0.044715) * x * x * x));
    return A(0.5) * (A(1) + t) + A(0.5) * x * (A(1) - t * t) * c * (A(1) + A(3 * 0.044715) * x * x);
  } else if constexpr (kKind == Activation::kReglu || kKind == Activation::kRelu) {
    return x <= A(0) ? A(0) : x == x ? A(1) : x;
  } else {
    static_assert(kKind == Activation::kRelu2);
    return x <= A(0) ? A(0) : A(2) * x;
  }
}

template <class A>
MOE_INLINE A clamp_above(A x, A limit) {
  return x > limit ? limit : x;
}
template <class A>
MOE_INLINE A clamp_below(A x, A limit) {
  return x < limit ? limit : x;
}

template <Activation kKind, class A>
static void activate_as(const A* __restrict gate, const A* __restrict up, int64_t count, A alpha, A limit,
                        A* __restrict act) {
  for (int64_t j = 0; j < count; ++j) {
    if constexpr (kKind == Activation::kClampedSwiglu) {
      const A g = clamp_above(gate[j], limit), u = clamp_below(clamp_above(up[j], limit), -limit);
      act[j] = (u + A(1)) * (g * sigmoid(alpha * g));
    } else if constexpr (is_gated(kKind)) {
      act[j] = gate_value<kKind>(gate[j]) * up[j];
    } else {
      act[j] = gate_value<kKind>(gate[j]);
    }
  }
}

// grad is dL/d act. Gives act again, and dL/d gate and dL/d up.
template <Activation kKind, class A>
static void activate_backward_as(const A* __restrict gate, const A* __restrict up, const A* __restrict grad,
                                 int64_t count, A alpha, A limit, A* __restrict act, A* __restrict grad_gate,
                                 A* __restrict grad_up) {
  for (int64_t j = 0; j < count; ++j) {
    if constexpr (kKind == Activation::kClampedSwiglu) {
      const A g = clamp_above(gate[j], limit), u = clamp_below(clamp_above(up[j], limit), -limit);
      const A s = sigmoid(alpha * g), value = g * s;
      act[j] = (u + A(1)) * value;
      // At the limit itself the clamp lets the gradient through, as torch.clamp does.
      const A through_gate = gate[j] > limit ? A(0) : A(1);
      const A through_up = up[j] > limit || up[j] < -limit ? A(0) : A(1);
      grad_gate[j] = grad[j] * (u + A(1)) * (s * (A(1) + alpha * g * (A(1) - s))) * through_gate;
      grad_up[j] = grad[j] * value * through_up;
    } else if constexpr (is_gated(kKind)) {
      const A value = gate_value<kKind>(gate[j]);
      act[j] = value * up[j];
      grad_gate[j] = grad[j] * up[j] * gate_slope<kKind>(gate[j]);
      grad_up[j] = grad[j] * value;
    } else {
      act[j] = gate_value<kKind>(gate[j]);
      grad_gate[j] = grad[j] * gate_slope<kKind>(gate[j]);
    }
  }
}

// Calls body.template operator()<kind>() for the activation at hand.
template <class Body>
static inline void with_activation(Activation kind, const Body& body) {
  switch (kind) {
    case Activation::kSwiglu:
      return body.template operator()<Activation::kSwiglu>();
    case Activation::kGeglu:
      return body.template operator()<Activation::kGeglu>();
    case Activation::kGegluTanh:
      return body.template operator()<Activation::kGegluTanh>();
    case Activation::kReglu:
      return body.template operator()<Activation::kReglu>();
    case Activation::kClampedSwiglu:
      return body.template operator()<Activation::kClampedSwiglu>();
    case Activation::kSilu:
      return body.template operator()<Activation::kSilu>();
    case Activation::kGelu:
      return body.template operator()<Activation::kGelu>();
    case Activation::kGeluTanh:
      return body.template operator()<Activation::kGeluTanh>();
    case Activation::kRelu:
      return body.template operator()<Activation::kRelu>();
    case Activation::kRelu2:
      return body.template operator()<Activation::kRelu2>();
  }
}

}  // namespace moe::cpu::MOE_ISA
