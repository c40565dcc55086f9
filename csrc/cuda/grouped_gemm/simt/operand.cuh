// One operand of the SIMT engine on its way from global memory, through registers, to a [kBlockK, kOuter] tile of
// accumulators in shared memory.
//
// "outer" is the dimension that survives the product: rows, columns of a weight. The offset of each outer index stands
// in a table in shared memory, made once per block, so gathers and column orders cost nothing in the loop. In a weight
// gradient the inner dimension is gathered instead, through a table of its own.
#pragma once

#include "cuda/common/numeric.cuh"

namespace moe::cuda::simt {

constexpr int kThreads = 128;

// How threads walk over an operand: along the dimension that is contiguous. Vectors are 4 elements (2 of float64).
enum class Access : int32_t { kVectorK, kVectorOuter, kScalarK, kScalarOuter };

template <class T>
constexpr int kBlockK = std::is_same_v<T, double> ? 8 : 16;

template <class T>
constexpr int kVector = 16 / sizeof(acc_t<T>);

// Rows of a tile in shared memory are this much longer than kOuter: a vector along k is stored as a column, and with
// two vectors for each of 16 outer indices a warp then fills all banks.
constexpr int kPad = 4;

constexpr int64_t kAbsent = -1;  // in a table of offsets: zeros

// kTableK: offsets along k stand in a table, one block of k at a time; else they are k * k_stride.
template <class T, int kOuter, bool kTableK>
struct Operand {
  using A = acc_t<T>;
  static constexpr int kK = kBlockK<T>, kV = kVector<T>, kElements = kOuter * kK, kStride = kOuter + kPad;
  static constexpr int kVectors = kElements / kV, kRounds = (kVectors + kThreads - 1) / kThreads;

  struct Staged {
    T values[kRounds * kV];
  };

  const T* data;
  const int64_t* outer_offsets;  // [kOuter]
  const int64_t* k_offsets;      // [kK], with kTableK
  int64_t k_stride;              // without
  Access access;

  struct Place {
    int outer, k;
  };
  static __device__ Place vector_place(bool along_k, int index) {
    if (along_k) return {index / 2 % kOuter, (index % 2 + index / 2 / kOuter * 2) * kV};
    return {index % (kOuter / kV) * kV, index / (kOuter / kV)};
  }
  static __device__ Place scalar_place(bool along_k, int index) {
    if (along_k) return {index / 8 % kOuter, index % 8 + index / 8 / kOuter * 8};
    return {index % kOuter, index / kOuter};
  }

  __device__ bool vectors() const { return access == Access::kVectorK || access == Access::kVectorOuter; }
  __device__ bool along_k() const { return access == Access::kVectorK || access == Access::kScalarK; }

  // The address of an element, or null. k counts from the block of k that begins at k_begin; k_end is the end of all.
  __device__ const T* address(Place place, int k_begin, int k_end) const {
    const int64_t outer = outer_offsets[place.outer];
    if (outer == kAbsent || k_begin + place.k >= k_end) return nullptr;
    if constexpr (kTableK) {
      const int64_t along = k_offsets[place.k];
      return along == kAbsent ? nullptr : data + outer + along;
    } else {
      return data + outer + (k_begin + place.k) * k_stride;
    }
  }

  __device__ void load(int k_begin, int k_end, int thread, Staged& staged) const {
    if (vectors()) {
#pragma unroll
      for (int round = 0; round < kRounds; ++round) {
        const int index = thread + round * kThreads;
        const T* source = nullptr;
        if (kVectors % kThreads == 0 || index < kVectors) {
          source = address(vector_place(along_k(), index), k_begin, k_end);
        }
        Vector<T, kV> vector = {};
        if (source) vector = moe::cuda::load<kV>(source);
#pragma unroll
        for (int i = 0; i < kV; ++i) staged.values[round * kV + i] = vector.values[i];
      }
    } else {
#pragma unroll
      for (int i = 0; i < kElements / kThreads; ++i) {
        const T* source = address(scalar_place(along_k(), thread + i * kThreads), k_begin, k_end);
        staged.values[i] = source ? *source : T(0);
      }
    }
  }

  __device__ void store(const Staged& staged, int thread, A* tile) const {
    if (vectors()) {
#pragma unroll
      for (int round = 0; round < kRounds; ++round) {
        const int index = thread + round * kThreads;
        if (kVectors % kThreads != 0 && index >= kVectors) break;
        const Place place = vector_place(along_k(), index);
        A* target = tile + place.k * kStride + place.outer;
        Vector<A, kV> vector;
#pragma unroll
        for (int i = 0; i < kV; ++i) vector.values[i] = to_acc(staged.values[round * kV + i]);
        if (along_k()) {
#pragma unroll
          for (int i = 0; i < kV; ++i) target[i * kStride] = vector.values[i];
        } else {
          moe::cuda::store(target, vector);
        }
      }
    } else {
#pragma unroll
      for (int i = 0; i < kElements / kThreads; ++i) {
        const Place place = scalar_place(along_k(), thread + i * kThreads);
        tile[place.k * kStride + place.outer] = to_acc(staged.values[i]);
      }
    }
  }
};

}  // namespace moe::cuda::simt
