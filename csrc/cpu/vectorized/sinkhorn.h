// The passes of sinkhorn over a range of tokens. Contract: moe/assign.h. Sums run over a fixed number of lanes, so
// every instruction set gives the same bits for float.
#pragma once

#include "cpu/vectorized/math.h"
#include "moe/assign.h"

namespace moe::cpu::MOE_ISA {

namespace sinkhorn_details {

inline constexpr int64_t kLanes = 16;

template <class A>
MOE_INLINE A sanitized(A x) {
  const A low = x == x ? x : -infinity(A());
  return low == infinity(A()) ? A(__FLT_MAX__) : low;
}

template <class A>
MOE_INLINE A larger(A a, A b) {
  return a > b ? a : b;
}

template <class A>
MOE_INLINE A* row_of(const SinkhornParams& p, int64_t token) {
  return static_cast<A*>(p.balanced) + token * p.num_experts;
}

template <class A>
static A maximum(const A* __restrict logits, int64_t count) {
  A lanes[kLanes];
  for (int64_t l = 0; l < kLanes; ++l) lanes[l] = -infinity(A());
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int64_t l = 0; l < kLanes; ++l) lanes[l] = larger(lanes[l], sanitized(logits[i + l]));
  }
  for (; i < count; ++i) lanes[0] = larger(lanes[0], sanitized(logits[i]));
  for (int64_t l = 1; l < kLanes; ++l) lanes[0] = larger(lanes[0], lanes[l]);
  return lanes[0];
}

template <class A>
MOE_INLINE A dot(const A* __restrict a, const A* __restrict b, int64_t count) {
  A lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int64_t l = 0; l < kLanes; ++l) lanes[l] += a[i + l] * b[i + l];
  }
  for (int64_t l = 0; i < count; ++i, ++l) lanes[l] += a[i] * b[i];
  for (int64_t half = kLanes / 2; half > 0; half /= 2) {
    for (int64_t l = 0; l < half; ++l) lanes[l] += lanes[l + half];
  }
  return lanes[0];
}

template <class A>
static int64_t exponentiate(const SinkhornParams& p, int64_t begin, int64_t end) {
  int64_t alive = 0;
  for (int64_t t = begin; t < end; ++t) {
    const A* __restrict logits = static_cast<const A*>(p.logits) + t * p.logits_stride;
    A* __restrict row = row_of<A>(p, t);
    const A high = maximum(logits, p.num_experts);
    const bool something = high > -infinity(A());
    const A origin = something ? high : A(0);  // -inf - 0 is still e^-inf = 0
    for (int64_t e = 0; e < p.num_experts; ++e) row[e] = exp(sanitized(logits[e]) - origin);
    alive += something;
  }
  return alive;
}

template <class A>
static void add_columns(const SinkhornParams& p, int64_t begin, int64_t end, const A* v, A* __restrict sums) {
  for (int64_t e = 0; e < p.num_experts; ++e) sums[e] = 0;
  for (int64_t t = begin; t < end; ++t) {
    const A* __restrict row = row_of<A>(p, t);
    const A sum = dot(row, v, p.num_experts);
    const A u = sum > 0 ? 1 / sum : A(0);
    for (int64_t e = 0; e < p.num_experts; ++e) sums[e] += row[e] * u;
  }
}

template <class A>
static void scale(const SinkhornParams& p, int64_t begin, int64_t end, const A* __restrict v) {
  for (int64_t t = begin; t < end; ++t) {
    A* __restrict row = row_of<A>(p, t);
    const A sum = dot<A>(row, v, p.num_experts);
    const A divisor = sum > 0 ? sum : A(1);  // a row of zeros
    for (int64_t e = 0; e < p.num_experts; ++e) row[e] = row[e] * v[e] / divisor;
  }
}

}  // namespace sinkhorn_details

static int64_t sinkhorn_exponentiate(const SinkhornParams& p, int64_t begin, int64_t end) {
  using namespace sinkhorn_details;
  return p.dtype == DType::kFloat64 ? exponentiate<double>(p, begin, end) : exponentiate<float>(p, begin, end);
}

static void sinkhorn_add_columns(const SinkhornParams& p, int64_t begin, int64_t end, const void* v, void* sums) {
  using namespace sinkhorn_details;
  if (p.dtype == DType::kFloat64) {
    add_columns(p, begin, end, static_cast<const double*>(v), static_cast<double*>(sums));
  } else {
    add_columns(p, begin, end, static_cast<const float*>(v), static_cast<float*>(sums));
  }
}

static void sinkhorn_scale(const SinkhornParams& p, int64_t begin, int64_t end, const void* v) {
  using namespace sinkhorn_details;
  if (p.dtype == DType::kFloat64) {
    scale(p, begin, end, static_cast<const double*>(v));
  } else {
    scale(p, begin, end, static_cast<const float*>(v));
  }
}

}  // namespace moe::cpu::MOE_ISA
