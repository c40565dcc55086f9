// One operand of the SIMT engine on its way from global memory, through registers, to a [kBlockK, kOuter] tile of
// accumulators in shared memory.
//
// "outer" is the dimension that survives the product: rows, columns of a weight. The offset of each outer index stands
// in a table in shared memory, made once per block, so gathers and column orders cost nothing in the loop. In a weight
// gradient the inner dimension is gathered instead, through a table of its own.
#pragma once

#include "cuda/common/numeric.cuh"
#include "cuda/ptx/store_shared.cuh"

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

// 16 bytes to shared memory in one access.
template <class A>
__device__ void store_whole(A* target, const A (&values)[16 / sizeof(A)]) {
  const uint32_t to = static_cast<uint32_t>(__cvta_generic_to_shared(target));
  if constexpr (sizeof(A) == 4) {
    ptx::store_shared(to, values[0], values[1], values[2], values[3]);
  } else {
    ptx::store_shared(to, values[0], values[1]);
  }
}

// What an operand is, before a thread takes its part of it.
template <class T>
struct Source {
  const T* data;
  const int64_t* outer_offsets;  // [kOuter], in shared memory
  int64_t k_stride;              // without a table along k
  Access access;
};

// kTableK: offsets along k stand in a table, one block of k at a time; else they are k * k_stride.
template <class T, int kOuter, bool kTableK>
class Operand {
 public:
  using A = acc_t<T>;
  static constexpr int kK = kBlockK<T>, kV = kVector<T>, kElements = kOuter * kK, kStride = kOuter + kPad;
  static constexpr int kVectors = kElements / kV, kRounds = (kVectors + kThreads - 1) / kThreads;

  struct Staged {
    T values[kRounds * kV];
  };

  // Blocks of k are loaded in ascending order, each once.
  __device__ Operand(const Source<T>& source, int k_end, int thread) : source_(source), k_end_(k_end), thread_(thread) {
    if (!vectors()) return;
#pragma unroll
    for (int round = 0; round < kRounds; ++round) {
      const Place place = vector_place(round);
      const int64_t outer = has_vector(round) ? source_.outer_offsets[place.outer] : kAbsent;
      next_[round] = source_.data + outer + (kTableK ? 0 : place.k * source_.k_stride);
      vector_end_[round] = outer == kAbsent ? 0 : k_end - place.k;
    }
  }

  __device__ void select(const int64_t* k_offsets) { k_offsets_ = k_offsets; }

  __device__ void load(int k_begin, Staged& staged) {
    if (vectors()) {
#pragma unroll
      for (int round = 0; round < kRounds; ++round) {
        Vector<T, kV> vector = {};
        if (k_begin < vector_end_[round]) {
          const int64_t along = kTableK ? k_offsets_[vector_place(round).k] : 0;
          if (along != kAbsent) vector = moe::cuda::load<kV>(next_[round] + along);
        }
        if (!kTableK) next_[round] += kK * source_.k_stride;
#pragma unroll
        for (int i = 0; i < kV; ++i) staged.values[round * kV + i] = vector.values[i];
      }
    } else if (along_k()) {
      const int64_t along = offset_along_k(k_begin, thread_ % kK);
#pragma unroll
      for (int i = 0; i < kElements / kThreads; ++i) {
        const int64_t outer = source_.outer_offsets[thread_ / kK + i * (kThreads / kK)];
        staged.values[i] = along != kAbsent && outer != kAbsent ? source_.data[outer + along] : T(0);
      }
    } else {
      const int64_t outer = source_.outer_offsets[thread_ % kOuter];
#pragma unroll
      for (int i = 0; i < kElements / kThreads; ++i) {
        const int64_t along = offset_along_k(k_begin, thread_ / kOuter + i * (kThreads / kOuter));
        staged.values[i] = along != kAbsent && outer != kAbsent ? source_.data[outer + along] : T(0);
      }
    }
  }

  __device__ void store(const Staged& staged, A* tile) const {
    if (vectors()) {
#pragma unroll
      for (int round = 0; round < kRounds; ++round) {
        if (!has_vector(round)) break;
        const Place place = vector_place(round);
        A* target = tile + place.k * kStride + place.outer;
        A values[kV];
#pragma unroll
        for (int i = 0; i < kV; ++i) values[i] = to_acc(staged.values[round * kV + i]);
        if (along_k()) {
#pragma unroll
          for (int i = 0; i < kV; ++i) target[i * kStride] = values[i];
        } else {
          store_whole(target, values);
        }
      }
    } else {
      const int first =
          along_k() ? thread_ % kK * kStride + thread_ / kK : thread_ / kOuter * kStride + thread_ % kOuter;
      const int step = along_k() ? kThreads / kK : kThreads / kOuter * kStride;
#pragma unroll
      for (int i = 0; i < kElements / kThreads; ++i) tile[first + i * step] = to_acc(staged.values[i]);
    }
  }

 private:
  struct Place {
    int outer, k;
  };
  // Two neighbours take a whole sector along k, or kOuter / kV of them a row of outer indices.
  __device__ Place vector_place(int round) const {
    const int index = thread_ + round * kThreads;
    if (along_k()) return {index / 2 % kOuter, (index % 2 + index / 2 / kOuter * 2) * kV};
    return {index % (kOuter / kV) * kV, index / (kOuter / kV)};
  }
  __device__ bool has_vector(int round) const {
    return kVectors % kThreads == 0 || thread_ + round * kThreads < kVectors;
  }

  __device__ bool vectors() const {
    return source_.access == Access::kVectorK || source_.access == Access::kVectorOuter;
  }
  __device__ bool along_k() const { return source_.access == Access::kVectorK || source_.access == Access::kScalarK; }

  __device__ int64_t offset_along_k(int k_begin, int k) const {
    if (k_begin + k >= k_end_) return kAbsent;
    return kTableK ? k_offsets_[k] : (k_begin + k) * source_.k_stride;
  }

  const Source<T> source_;
  const int k_end_, thread_;
  const int64_t* k_offsets_ = nullptr;
  // With vectors: where the next ones stand, and the first block of k where there are none.
  const T* next_[kRounds];
  int vector_end_[kRounds];
};

}  // namespace moe::cuda::simt
