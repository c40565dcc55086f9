// Operands of soft_mix's products on their way through registers to the SIMT engine's tiles of [kBlockK, 64]
// accumulators (grouped_gemm/simt/main_loop.cuh). Threads walk along the contiguous dimension, a vector of 16 bytes of
// accumulators at a time; where addresses allow it they are loaded as one. A is float or double; data is of any type
// that is added up in it.
#pragma once

#include "cuda/common/numeric.cuh"
#include "cuda/grouped_gemm/simt/operand.cuh"
#include "cuda/soft/products.h"

namespace moe::cuda::simt {

// N neighbours from `index` on.
template <class A, int N>
__device__ void read(const void* data, DType dtype, int64_t index, bool vector, A (&values)[N]) {
  const auto read_as = [&]<class T>(T*) {
    const T* const from = static_cast<const T*>(data) + index;
    if (vector) {
      to_acc(load<N>(from), values);
    } else {
#pragma unroll
      for (int i = 0; i < N; ++i) values[i] = to_acc(from[i]);
    }
  };
  if constexpr (std::is_same_v<A, double>) {
    read_as(static_cast<double*>(nullptr));
  } else if (dtype == DType::kFloat32) {
    read_as(static_cast<float*>(nullptr));
  } else if (dtype == DType::kBFloat16) {
    read_as(static_cast<__nv_bfloat16*>(nullptr));
  } else {
    read_as(static_cast<__half*>(nullptr));
  }
}

// A thread's vectors of a tile: kRounds of them, kV elements along k or along the outer dimension.
template <class A, bool kAlongK>
struct Vectors {
  static constexpr int kOuter = 64, kK = kBlockK<A>, kV = kVector<A>, kStride = kOuter + kPad;
  static constexpr int kRounds = kOuter * kK / kV / kThreads;
  static_assert(kRounds * kV * kThreads == kOuter * kK);

  struct Place {
    int outer, k;
  };
  // As in Operand: two neighbours take a whole sector along k, or kOuter / kV of them a row of outer indices.
  static __device__ Place place(int thread, int round) {
    const int index = thread + round * kThreads;
    if (kAlongK) return {index / 2 % kOuter, (index % 2 + index / 2 / kOuter * 2) * kV};
    return {index % (kOuter / kV) * kV, index / (kOuter / kV)};
  }
  static __device__ void store(A* tile, Place place, const A (&values)[kV]) {
    A* const to = tile + place.k * kStride + place.outer;
    if constexpr (kAlongK) {
#pragma unroll
      for (int i = 0; i < kV; ++i) to[i * kStride] = values[i];
    } else {
      store_whole(to, values);
    }
  }
};

// How many of a vector's elements are there.
__device__ inline int present(int first, int end, int vector) { return min(max(end - first, 0), vector); }

// Rows of data: rows are the outer dimension (kAlongK) or the inner one.
template <class A, bool kAlongK>
class DataOperand {
  using V = Vectors<A, kAlongK>;

 public:
  struct Staged {
    A values[V::kRounds][V::kV];
  };

  __device__ DataOperand(const SoftRows& rows, DType dtype, int64_t batch, int first_outer, int num_outer, int num_k,
                         bool vector, int thread)
      : rows_(rows),
        first_(batch * rows.batch_stride),
        dtype_(dtype),
        first_outer_(first_outer),
        num_outer_(num_outer),
        num_k_(num_k),
        thread_(thread),
        vector_(vector) {}

  __device__ void load(int k_begin, Staged& staged) const {
#pragma unroll
    for (int round = 0; round < V::kRounds; ++round) {
      const typename V::Place place = V::place(thread_, round);
      const int outer = first_outer_ + place.outer, k = k_begin + place.k;
      const int row = kAlongK ? outer : k, column = kAlongK ? k : outer;
      const int count =
          row < (kAlongK ? num_outer_ : num_k_) ? present(column, kAlongK ? num_k_ : num_outer_, V::kV) : 0;
      const int64_t index = first_ + row * rows_.stride + column;
#pragma unroll
      for (int i = 0; i < V::kV; ++i) staged.values[round][i] = 0;
      if (count == V::kV) {
        read<A>(rows_.data, dtype_, index, vector_, staged.values[round]);
      } else {
#pragma unroll
        for (int i = 0; i < V::kV; ++i) {
          A one[1];
          if (i < count) read<A>(rows_.data, dtype_, index + i, false, one), staged.values[round][i] = one[0];
        }
      }
    }
  }

  __device__ void store(const Staged& staged, A* tile) const {
#pragma unroll
    for (int round = 0; round < V::kRounds; ++round) {
      V::store(tile, V::place(thread_, round), staged.values[round]);
    }
  }

 private:
  SoftRows rows_;
  int64_t first_;
  DType dtype_;
  int first_outer_, num_outer_, num_k_, thread_;
  bool vector_;
};

__device__ inline float exponential(float x) { return expf(x); }
__device__ inline double exponential(double x) { return exp(x); }

// Weights: slots are contiguous, as the outer dimension or as the inner one (kAlongK).
template <class A, bool kAlongK>
class WeightOperand {
  using V = Vectors<A, kAlongK>;

 public:
  struct Staged {
    A logits[V::kRounds][V::kV];
  };

  __device__ WeightOperand(const SoftMixParams& p, int64_t batch, int first_outer, bool vector, int thread)
      : p_(p), batch_(batch), first_outer_(first_outer), thread_(thread), vector_(vector) {}

  // Blocks of k are loaded in ascending order and stored in the same.
  __device__ void load(int k_begin, Staged& staged) const {
#pragma unroll
    for (int round = 0; round < V::kRounds; ++round) {
      const Quad quad = find(k_begin, round);
      const int64_t index = batch_ * p_.logits_batch_stride + quad.token * p_.logits_stride + quad.slot;
#pragma unroll
      for (int i = 0; i < V::kV; ++i) staged.logits[round][i] = 0;
      if (quad.count == V::kV) {
        read<A>(p_.logits, p_.logits_dtype, index, vector_, staged.logits[round]);
      } else {
#pragma unroll
        for (int i = 0; i < V::kV; ++i) {
          A one[1];
          if (i < quad.count)
            read<A>(p_.logits, p_.logits_dtype, index + i, false, one), staged.logits[round][i] = one[0];
        }
      }
    }
  }

  // Statistics are in L1 or near it, and are only read here: kept from load() on, they would take too many registers.
  __device__ void store(const Staged& staged, A* tile) {
    const int64_t results = p_.dispatch ? p_.num_slots : p_.num_tokens;
    const A* const maxima = static_cast<const A*>(p_.statistics) + batch_ * results;
    const A* const scales = maxima + p_.batch * results;
#pragma unroll
    for (int round = 0; round < V::kRounds; ++round) {
      const Quad quad = find(stored_, round);
      A max[V::kV], scale[V::kV], weights[V::kV];
      if (p_.dispatch && vector_ && quad.count == V::kV) {
        to_acc(moe::cuda::load<V::kV>(maxima + quad.slot), max);
        to_acc(moe::cuda::load<V::kV>(scales + quad.slot), scale);
      } else {
#pragma unroll
        for (int i = 0; i < V::kV; ++i) {
          const int result = p_.dispatch ? quad.slot + i : quad.token;
          max[i] = i < quad.count ? maxima[result] : A(0);
          scale[i] = i < quad.count ? scales[result] : A(0);
        }
      }
#pragma unroll
      for (int i = 0; i < V::kV; ++i) {
        weights[i] = exponential(staged.logits[round][i] - max[i]) * scale[i];
        if constexpr (std::is_same_v<A, float>) {
          if (p_.dtype == DType::kBFloat16) weights[i] = to_acc(from_acc<__nv_bfloat16>(weights[i]));
          if (p_.dtype == DType::kFloat16) weights[i] = to_acc(from_acc<__half>(weights[i]));
        }
      }
      V::store(tile, V::place(thread_, round), weights);
    }
    stored_ += V::kK;
  }

 private:
  // Logits of one token, and how many of them have a weight.
  struct Quad {
    int token, slot, count;
  };
  __device__ Quad find(int k_begin, int round) const {
    const int num_tokens = static_cast<int>(p_.num_tokens), num_slots = static_cast<int>(p_.num_slots);
    const typename V::Place place = V::place(thread_, round);
    const int outer = first_outer_ + place.outer, k = k_begin + place.k;
    const int token = kAlongK ? outer : k, slot = kAlongK ? k : outer;
    const bool visible =
        token < num_tokens && (p_.token_mask == nullptr || p_.token_mask[batch_ * num_tokens + token] != 0);
    return {token, slot, visible ? present(slot, num_slots, V::kV) : 0};
  }

  const SoftMixParams& p_;
  int64_t batch_;
  int first_outer_, thread_;
  int stored_ = 0;  // of k
  bool vector_;
};

}  // namespace moe::cuda::simt
