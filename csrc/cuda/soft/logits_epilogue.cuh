// A finished part of the products <tokens[t], slots[s]> in shared memory becomes gradients of logits.
//
// A thread has the same four slots in every kRowsAtOnce-th row: neighbours where logits come in aligned quads, else
// kGroups apart, so that single elements are coalesced too. It asks for the logits of several rows at once.
#pragma once

#include "cuda/common/numeric.cuh"
#include "cuda/ptx/approximate.cuh"
#include "cuda/soft/products.h"

namespace moe::cuda {

// For products of 16-bit data the hardware's approximation: far closer than the products are.
template <bool kApproximate>
__device__ float soft_exponential(float x) {
  return kApproximate ? ptx::exp2_approximate(x * 1.44269504f) : expf(x);
}
template <bool kApproximate>
__device__ double soft_exponential(double x) {
  return exp(x);
}

// Rows first_token, ... and columns first_slot, ...: kRows x kColumns sums, rows kStride apart.
template <class L, bool kApproximate, int kRows, int kColumns, int kStride, int kThreads, class A>
__device__ void finish_logits(const SoftLogits& g, bool quads, int64_t batch, int first_token, int first_slot,
                              const A* sums, int thread) {
  constexpr int kGroups = kColumns / 4, kRowsAtOnce = kThreads / kGroups, kBatch = 4;
  static_assert(kThreads % kGroups == 0 && kRows % (kBatch * kRowsAtOnce) == 0);
  const SoftMixParams& p = g.mix;
  const int num_tokens = static_cast<int>(p.num_tokens), num_slots = static_cast<int>(p.num_slots);
  const int column = quads ? thread % kGroups * 4 : thread % kGroups, distance = quads ? 1 : kGroups;
  const int slot = first_slot + column;
  if (slot >= num_slots) return;

  const int64_t results = p.dispatch ? num_slots : num_tokens;
  const A* const maxima = static_cast<const A*>(p.statistics) + batch * results;
  const A* const scales = maxima + p.batch * results;
  const A* const dots = static_cast<const A*>(g.dots) + batch * results;
  A max[4] = {}, scale[4] = {}, dot[4] = {};
  const auto read_statistics = [&](int i, int result) {
    max[i] = maxima[result], scale[i] = scales[result], dot[i] = dots[result];
  };
  if (p.dispatch && quads) {
    to_acc(load<4>(maxima + slot), max);
    to_acc(load<4>(scales + slot), scale);
    to_acc(load<4>(dots + slot), dot);
  } else if (p.dispatch) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (slot + i * distance < num_slots) read_statistics(i, slot + i * distance);
    }
  }

  const uint8_t* const mask = p.token_mask == nullptr ? nullptr : p.token_mask + batch * num_tokens;
  const L* const logits = static_cast<const L*>(p.logits) + batch * p.logits_batch_stride + slot;
  L* const out = static_cast<L*>(g.grad_logits) + batch * num_tokens * num_slots + slot;
#pragma unroll 1
  for (int first = thread / kGroups; first < kRows; first += kBatch * kRowsAtOnce) {
    if (first_token + first >= num_tokens) return;
    Vector<L, 4> loaded[kBatch] = {};
    uint8_t visible[kBatch] = {};
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int token = first_token + first + i * kRowsAtOnce;
      if (token >= num_tokens) continue;
      const L* const row = logits + token * p.logits_stride;
      if (quads) {
        loaded[i] = load<4>(row);
      } else {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          if (slot + j * distance < num_slots) loaded[i].values[j] = row[j * distance];
        }
      }
      visible[i] = mask == nullptr ? 1 : mask[token];
      if (!p.dispatch) read_statistics(i, token);
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int row = first + i * kRowsAtOnce, token = first_token + row;
      if (token >= num_tokens) continue;
      A grad[4];
      if (quads) {
        to_acc(load<4>(sums + row * kStride + column), grad);
      } else {
#pragma unroll
        for (int j = 0; j < 4; ++j) grad[j] = sums[row * kStride + column + j * distance];
      }
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const A l = to_acc(loaded[i].values[j]);
        const A high = p.dispatch ? max[j] : max[i], by = p.dispatch ? scale[j] : scale[i];
        const A weight = soft_exponential<kApproximate>(l - high) * by;
        grad[j] = visible[i] != 0 ? weight * (grad[j] - (p.dispatch ? dot[j] : dot[i])) : A(0);
      }
      L* const to = out + int64_t{token} * num_slots;
      if (quads) {
        store(to, from_acc<L>(grad));
      } else {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          if (slot + j * distance < num_slots) to[j * distance] = from_acc<L>(grad[j]);
        }
      }
    }
  }
}

}  // namespace moe::cuda
