// The epilogues of the plain case: swiglu of 16-bit data with gate and up side by side, all columns of the slice there.
//
// The same results, to the bit, as ActivateEpilogue and ActivateBackwardEpilogue give elsewhere, with fewer
// instructions: a thread has one or two runs of 4 columns, half a row of outputs apart, in every kRowStep-th row.
// Neighbouring threads have neighbouring runs. What a row needs besides its values is found once for both runs, and
// pointers move from row to row.
#pragma once

#include <type_traits>

#include "cuda/common/activation.cuh"
#include "cuda/grouped_gemm/product.h"
#include "cuda/grouped_gemm/slice.cuh"
#include "cuda/ptx/opaque.cuh"

namespace moe::cuda {

template <int kOutputs, int kRows, int kThreads>
struct SwigluPlace {
  static constexpr int kRuns = kOutputs < 64 ? 1 : 2;  // fewer than 8 threads in a row would meet in the banks
  static constexpr int kApart = kOutputs / kRuns;
  static constexpr int kLanes = kApart / 4;  // that share a row
  static constexpr int kRowStep = kThreads / kLanes;
  static_assert(kLanes % 8 == 0 && kLanes <= 32 && kRows <= kThreads);

  int row, column;  // in the slice

  explicit __device__ SwigluPlace(int thread) : row(thread / kLanes), column(thread % kLanes * 4) {}
};

template <int kRuns, int kApart, class T, class V>
__device__ void load_runs(const T* source, V (&runs)[kRuns]) {
#pragma unroll
  for (int i = 0; i < kRuns; ++i) runs[i] = *reinterpret_cast<const V*>(source + i * kApart);
}

__device__ inline void spread(float4 run, float (&values)[4]) {
  values[0] = run.x, values[1] = run.y, values[2] = run.z, values[3] = run.w;
}

template <class T>
__device__ void spread(uint2 run, float (&values)[4]) {
  unpack<T>(run.x, values[0], values[1]);
  unpack<T>(run.y, values[2], values[3]);
}

template <int kRuns, int kApart, class T>
__device__ void store_runs(T* target, const float (&values)[kRuns][4]) {
#pragma unroll
  for (int i = 0; i < kRuns; ++i) {
    const float (&v)[4] = values[i];
    *reinterpret_cast<uint2*>(target + i * kApart) = {pack<T>(v[0], v[1]), pack<T>(v[2], v[3])};
  }
}

// `outputs`: columns of the slice that belong to outputs.
__device__ inline bool is_plain_swiglu(const ActivateEpilogue& epilogue, const Slice& slice, int outputs) {
  return epilogue.rule.kind == Activation::kSwiglu && !epilogue.interleaved && epilogue.vector && epilogue.act &&
         epilogue.preact_format == PreactFormat::kSameAsData && !epilogue.bias && !epilogue.topk_weights &&
         slice.expert >= 0 && slice.columns.first + outputs <= slice.columns.outputs();
}

__device__ inline bool is_plain_swiglu(const ActivateBackwardEpilogue& epilogue, const Slice& slice, int outputs) {
  return epilogue.rule.kind == Activation::kSwiglu && !epilogue.interleaved && epilogue.vector &&
         epilogue.preact_format == PreactFormat::kSameAsData &&
         slice.columns.first + outputs <= slice.columns.outputs();
}

template <class T, int kRows, int kColumns, int kStride, int kThreads>
__device__ void finish_swiglu(const ActivateEpilogue& epilogue, const float* sums, const Slice& slice, int thread) {
  using Place = SwigluPlace<kColumns / 2, kRows, kThreads>;
  constexpr int kRuns = Place::kRuns, kApart = Place::kApart, kRowStep = Place::kRowStep;
  const Place place(thread);
  const int64_t outputs = slice.columns.outputs(), first_row = slice.first_row + place.row;
  const int column = slice.columns.first + place.column;
  T* act = static_cast<T*>(epilogue.act) + first_row * outputs + column;
  T* preact_gate = static_cast<T*>(epilogue.preact) + first_row * 2 * outputs + column;
  T* preact_up = preact_gate + outputs;
  const float* from = sums + place.row * kStride + place.column;
#pragma unroll 1
  for (int left = slice.num_rows - place.row; left > 0; left -= kRowStep) {
    float4 gates[kRuns], ups[kRuns];
    load_runs<kRuns, kApart>(from, gates);
    load_runs<kRuns, kApart>(from + kColumns / 2, ups);
    float gate[kRuns][4], up[kRuns][4], value[kRuns][4];
#pragma unroll
    for (int i = 0; i < kRuns; ++i) {
      spread(gates[i], gate[i]);
      spread(ups[i], up[i]);
#pragma unroll
      for (int j = 0; j < 4; ++j) value[i][j] = gate[i][j] * Activator<T>::sigmoid(gate[i][j]) * up[i][j];
    }
    if (epilogue.preact) {
      store_runs<kRuns, kApart>(preact_gate, gate);
      store_runs<kRuns, kApart>(preact_up, up);
    }
    store_runs<kRuns, kApart>(act, value);
    from += kRowStep * kStride;
    preact_gate += kRowStep * 2 * outputs;
    preact_up += kRowStep * 2 * outputs;
    act += kRowStep * outputs;
  }
}

// Sums over 64 columns in the order of ActivateBackwardEpilogue: a butterfly over 16 runs. With two runs to a thread
// even lanes go on with the first one's sum and odd lanes with the second one's; where these are of the same 64
// columns they meet in the end.
template <int kLanes>
__device__ float sum_of_runs(const float (&partials)[2], int lane) {
  const bool odd = lane % 2 != 0;
  float sum = odd ? partials[1] : partials[0];
  sum += __shfl_xor_sync(0xffffffff, odd ? partials[0] : partials[1], 1);
#pragma unroll
  for (int step = 2; step < (kLanes < 16 ? kLanes : 16); step *= 2) sum += __shfl_xor_sync(0xffffffff, sum, step);
  if (kLanes < 16) sum += __shfl_xor_sync(0xffffffff, sum, 1);
  return sum;
}

template <class T, int kRows, int kColumns, int kStride, int kThreads>
__device__ void finish_swiglu(const ActivateBackwardEpilogue& epilogue, const float* sums, const Slice& slice,
                              int thread) {
  using Place = SwigluPlace<kColumns, kRows, kThreads>;
  constexpr int kRuns = Place::kRuns, kApart = Place::kApart, kRowStep = Place::kRowStep, kLanes = Place::kLanes;
  constexpr int kSumLanes = kLanes < 16 ? kLanes : 16;
  // Narrow slices come in a loop, beside all sums of a tile, that has no registers to spare; nor has the widest tile of
  // float16, whose conversions take more of them.
  constexpr bool kFewRegisters = kColumns < 128 || (std::is_same_v<T, __half> && kColumns > 128);
  if constexpr (kFewRegisters) thread = ptx::opaque(thread);
  const Place place(thread);
  const int64_t outputs = slice.columns.outputs(), first_row = slice.first_row + place.row;
  const int column = slice.columns.first + place.column, lane = thread % 32;
  const int64_t begin = first_row * 2 * outputs + column;
  const T* preact_gate = static_cast<const T*>(epilogue.preact) + begin;
  const T* preact_up = preact_gate + outputs;
  T* grad_gate = static_cast<T*>(epilogue.grad_preact) + begin;
  T* grad_up = grad_gate + outputs;
  T* act_scaled = static_cast<T*>(epilogue.act_scaled) + first_row * outputs + column;
  const float* from = sums + place.row * kStride + place.column;

  // Lane i of a row's lanes keeps the weight of the i-th row they come to.
  const int weight_row = place.row + thread % kLanes * kRowStep;
  const float weights = weight_row < slice.num_rows
                            ? row_weight<float>(epilogue.topk_weights, epilogue.row_to_slot, epilogue.num_slots,
                                                slice.first_row + weight_row)
                            : 0.0f;

  // The lane that stores a sum of 64 columns, and where.
  const bool sums_up = epilogue.partials && lane % kSumLanes < (kLanes < 16 ? 1 : 2);
  const int64_t num_partials = (outputs + kPartialColumns - 1) / kPartialColumns;
  float* partials = static_cast<float*>(epilogue.partials) + first_row * num_partials +
                    (column + (lane % kSumLanes == 1 ? kApart : 0)) / kPartialColumns;

  // What a row needs from memory is asked for while the row before it is worked on.
  uint2 next_gate[kRuns] = {}, next_up[kRuns] = {};
  const auto prefetch = [&](int left) {
    if (left > 0) {
      load_runs<kRuns, kApart>(preact_gate, next_gate);
      load_runs<kRuns, kApart>(preact_up, next_up);
    }
    preact_gate += kRowStep * 2 * outputs;
    preact_up += kRowStep * 2 * outputs;
  };
  int left = slice.num_rows - place.row;
  prefetch(left);
  // Whole warps go around the loop together: lanes exchange sums.
  const int steps = (slice.num_rows + kRowStep - 1) / kRowStep;
#pragma unroll 1
  for (int step = 0; step < steps; ++step, left -= kRowStep) {
    float gate[kRuns][4], up[kRuns][4], partial[2] = {};
#pragma unroll
    for (int i = 0; i < kRuns; ++i) {
      spread<T>(next_gate[i], gate[i]);
      spread<T>(next_up[i], up[i]);
    }
    prefetch(left - kRowStep);
    const float weight = __shfl_sync(0xffffffff, weights, step, kLanes);
    if (left > 0) {
      float4 products[kRuns];
      load_runs<kRuns, kApart>(from, products);
      float act[kRuns][4];
#pragma unroll
      for (int i = 0; i < kRuns; ++i) {
        float product[4];
        spread(products[i], product);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const float sigmoid = Activator<T>::sigmoid(gate[i][j]);
          const float curve = gate[i][j] * sigmoid, slope = fma(curve, 1.0f - sigmoid, sigmoid);
          const float grad = product[j] * weight, value = curve * up[i][j];
          gate[i][j] = grad * slope * up[i][j];
          up[i][j] = grad * curve;
          partial[i] = fma(product[j], value, partial[i]);
          act[i][j] = value * weight;
        }
      }
      store_runs<kRuns, kApart>(grad_gate, gate);
      store_runs<kRuns, kApart>(grad_up, up);
      if (epilogue.act_scaled) store_runs<kRuns, kApart>(act_scaled, act);
    }
    if (epilogue.partials) {
      const float sum = sum_of_runs<kLanes>(partial, lane);
      if (sums_up && left > 0) *partials = sum;
    }
    from += kRowStep * kStride;
    grad_gate += kRowStep * 2 * outputs;
    grad_up += kRowStep * 2 * outputs;
    act_scaled += kRowStep * outputs;
    partials += kRowStep * num_partials;
  }
}

}  // namespace moe::cuda
