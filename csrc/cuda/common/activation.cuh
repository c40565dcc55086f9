// The activations of moe/activation.h and their derivatives, over a run of N columns in registers.
//
// float and double data get the accurate functions of CUDA's library. For 16-bit data e^x and 1/x are the hardware's,
// far closer than half a unit in the last place of what is stored. NaN stays NaN.
#pragma once

#include "cuda/common/numeric.cuh"
#include "cuda/ptx/approximate.cuh"
#include "moe/activation.h"

namespace moe::cuda {

template <class T>
class Activator {
 public:
  using A = acc_t<T>;

  __device__ explicit Activator(const ActivationRule& rule)
      : kind_(rule.kind),
        clamped_(rule.kind == Activation::kClampedSwiglu),
        alpha_(clamped_ ? static_cast<A>(rule.alpha) : A(1)),
        limit_(static_cast<A>(rule.limit)) {}

  __device__ bool gated() const { return kind_ < Activation::kSilu; }

  static __device__ float sigmoid(float x) {
    const float inverse = 1.0f + exponential(-x);
    return kIsHalf<T> ? ptx::reciprocal_approximate(inverse) : 1.0f / inverse;
  }
  static __device__ double sigmoid(double x) { return 1.0 / (1.0 + exp(-x)); }

  // act = activation(gate, up). up is not read where nothing is gated.
  template <int N>
  __device__ void forward(const A (&gate)[N], const A (&up)[N], A (&act)[N]) const {
    A g[N], u[N], none[N];
    inner(gate, up, g, u);
    curve<false>(g, act, none);
    if (!gated()) return;
#pragma unroll
    for (int i = 0; i < N; ++i) act[i] *= u[i];
  }

  // grad is d loss / d act. Gives act again, and the gradients of gate and up.
  template <int N>
  __device__ void backward(const A (&gate)[N], const A (&up)[N], const A (&grad)[N], A (&act)[N], A (&grad_gate)[N],
                           A (&grad_up)[N]) const {
    A g[N], u[N], slope[N];
    inner(gate, up, g, u);
    curve<true>(g, act, slope);
#pragma unroll
    for (int i = 0; i < N; ++i) grad_gate[i] = grad[i] * slope[i];
    if (!gated()) return;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      grad_up[i] = grad[i] * act[i];
      grad_gate[i] *= u[i];
      act[i] *= u[i];
    }
    if (!clamped_) return;
    // At the limit itself the clamp lets the gradient through, as torch.clamp does.
#pragma unroll
    for (int i = 0; i < N; ++i) {
      grad_gate[i] *= gate[i] > limit_ ? A(0) : A(1);
      grad_up[i] *= up[i] > limit_ || up[i] < -limit_ ? A(0) : A(1);
    }
  }

 private:
  // What the curve is applied to, and what its value is multiplied by.
  template <int N>
  __device__ void inner(const A (&gate)[N], const A (&up)[N], A (&g)[N], A (&u)[N]) const {
#pragma unroll
    for (int i = 0; i < N; ++i) g[i] = gate[i], u[i] = up[i];
    if (!clamped_) return;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      g[i] = g[i] > limit_ ? limit_ : g[i];
      u[i] = u[i] > limit_ ? limit_ : u[i];
      u[i] = (u[i] < -limit_ ? -limit_ : u[i]) + A(1);
    }
  }

  template <bool kSlope, int N>
  __device__ void curve(const A (&x)[N], A (&value)[N], A (&slope)[N]) const {
    switch (kind_) {
      case Activation::kSwiglu:
      case Activation::kClampedSwiglu:
      case Activation::kSilu:
#pragma unroll
        for (int i = 0; i < N; ++i) {
          const A s = sigmoid(alpha_ * x[i]);
          value[i] = x[i] * s;
          if (kSlope) slope[i] = fma(alpha_ * value[i], A(1) - s, s);
        }
        break;
      case Activation::kGeglu:
      case Activation::kGelu:
#pragma unroll
        for (int i = 0; i < N; ++i) {
          const A below = A(0.5) * (A(1) + error_function(x[i] * A(0.70710678118654752440)));
          value[i] = x[i] * below;
          if (kSlope) slope[i] = below + x[i] * (A(0.39894228040143267794) * exponential(A(-0.5) * x[i] * x[i]));
        }
        break;
      case Activation::kGegluTanh:
      case Activation::kGeluTanh:
#pragma unroll
        for (int i = 0; i < N; ++i) {
          // (1 + tanh(t)) / 2 = sigmoid(2t), which doesn't cancel below 0.
          const A c = A(2 * 0.79788456080286535588), cubic = A(0.044715) * x[i] * x[i];
          const A s = sigmoid(c * (x[i] + cubic * x[i]));
          value[i] = x[i] * s;
          if (kSlope) slope[i] = s + x[i] * s * (A(1) - s) * c * (A(1) + A(3) * cubic);
        }
        break;
      case Activation::kReglu:
      case Activation::kRelu:
#pragma unroll
        for (int i = 0; i < N; ++i) {
          value[i] = x[i] <= A(0) ? A(0) : x[i];
          if (kSlope) slope[i] = x[i] <= A(0) ? A(0) : x[i] == x[i] ? A(1) : x[i];
        }
        break;
      case Activation::kRelu2:
#pragma unroll
        for (int i = 0; i < N; ++i) {
          value[i] = x[i] <= A(0) ? A(0) : x[i] * x[i];
          if (kSlope) slope[i] = x[i] <= A(0) ? A(0) : A(2) * x[i];
        }
        break;
    }
  }

  static __device__ float exponential(float x) { return kIsHalf<T> ? ptx::exp2_approximate(x * 1.44269504f) : expf(x); }
  static __device__ double exponential(double x) { return exp(x); }
  static __device__ float error_function(float x) { return erff(x); }
  static __device__ double error_function(double x) { return erf(x); }
  Activation kind_;
  bool clamped_;
  A alpha_, limit_;
};

}  // namespace moe::cuda
