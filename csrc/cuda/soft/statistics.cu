// What the weights of soft_mix are formed from: of each result the maximum of its logits and 1 / the sum of their
// exponentials, in one pass that keeps both as it goes. Combine has a warp for each row of logits. Dispatch goes down
// the columns: a lane has a slot, the warps of a block share the tokens. Partial results meet in a fixed order.
#include <algorithm>

#include "cuda/common/launch_kernel.cuh"
#include "cuda/permute/block_scan.cuh"
#include "cuda/route/math.cuh"
#include "cuda/soft/products.h"

namespace moe::cuda {

namespace {

// Logits that a lane asks for at once.
template <class A>
constexpr int kBatch = sizeof(A) == 4 ? 8 : 4;
constexpr int kRowWarps = 8, kColumnWarps = 16;

// The largest of some logits, and the sum of e^(l - max); of none -inf and 0. NaN gets into the sum alone.
template <class A>
struct Softmax {
  A max, sum;

  __device__ Softmax() : max(-routing::infinity(A())), sum(0) {}

  // What exponents are taken from: not -inf, from which -inf has no distance.
  static __device__ A base(A max) { return max == -routing::infinity(A()) ? A(0) : max; }
  static __device__ float exponential(float x) { return expf(x); }
  static __device__ double exponential(double x) { return exp(x); }

  template <int N>
  __device__ void add(const A (&logits)[N]) {
    A higher = max;
#pragma unroll
    for (int i = 0; i < N; ++i) higher = fmax(higher, logits[i]);
    const A from = base(higher);
    sum *= exponential(max - from);
#pragma unroll
    for (int i = 0; i < N; ++i) sum += exponential(logits[i] - from);
    max = higher;
  }

  __device__ void merge(A other_max, A other_sum) {
    const A higher = fmax(max, other_max), from = base(higher);
    sum = sum * exponential(max - from) + other_sum * exponential(other_max - from);
    max = higher;
  }

  // -inf alone: 1 / 0, and weights of exp(-inf + inf).
  __device__ void write(void* statistics, int64_t results, int64_t result, bool something) const {
    static_cast<A*>(statistics)[result] = something ? max : A(0);
    static_cast<A*>(statistics)[results + result] = something ? 1 / sum : A(0);
  }
};

// A warp for each row of a sequence, in so many blocks.
struct RowOfWarp {
  int64_t batch, row;

  __device__ explicit RowOfWarp(const FastDivide& row_blocks) {
    const uint32_t index = row_blocks(blockIdx.x);
    batch = index;
    row = int64_t{blockIdx.x - index * row_blocks.divisor()} * kRowWarps + threadIdx.x / 32;
  }
};

template <class L>
__global__ void __launch_bounds__(kRowWarps * 32)
    soft_row_statistics_kernel(const __grid_constant__ SoftMixParams p, FastDivide row_blocks, bool quads) {
  using A = acc_t<L>;
  const RowOfWarp row_of_warp(row_blocks);
  const int64_t batch = row_of_warp.batch, token = row_of_warp.row;
  if (token >= p.num_tokens) return;
  const int64_t results = p.batch * p.num_tokens, result = batch * p.num_tokens + token;
  const int lane = lane_of(threadIdx.x);
  const bool something = p.num_slots > 0 && (p.token_mask == nullptr || p.token_mask[result] != 0);
  // The same lane has the same logits whether they come as vectors or not: so do sums have the same bits.
  constexpr int kPiece = sizeof(L) <= 4 ? 4 : 1;
  Softmax<A> softmax;
  if (something) {
    const L* row = static_cast<const L*>(p.logits) + batch * p.logits_batch_stride + token * p.logits_stride;
    for (int64_t first = 0; first < p.num_slots; first += kBatch<A> * 32) {
      A logits[kBatch<A>];
#pragma unroll
      for (int i = 0; i < kBatch<A>; ++i) logits[i] = -routing::infinity(A());
#pragma unroll
      for (int i = 0; i < kBatch<A>; i += kPiece) {
        const int64_t slot = first + i * 32 + lane * kPiece;
        if (slot >= p.num_slots) continue;
        if (quads) {
          const Vector<L, kPiece> piece = load<kPiece>(row + slot);
#pragma unroll
          for (int j = 0; j < kPiece; ++j) logits[i + j] = to_acc(piece.values[j]);
        } else {
#pragma unroll
          for (int j = 0; j < kPiece; ++j) {
            if (slot + j < p.num_slots) logits[i + j] = to_acc(row[slot + j]);
          }
        }
      }
      softmax.add(logits);
    }
#pragma unroll 1
    for (int step = 16; step > 0; step /= 2) {
      const A max = __shfl_xor_sync(kAllLanes, softmax.max, step), sum = __shfl_xor_sync(kAllLanes, softmax.sum, step);
      softmax.merge(max, sum);
    }
  }
  if (lane == 0) softmax.write(p.statistics, results, result, something);
}

template <class L>
__global__ void __launch_bounds__(kColumnWarps * 32, 1)
    soft_column_statistics_kernel(const __grid_constant__ SoftMixParams p, FastDivide slot_blocks) {
  using A = acc_t<L>;
  __shared__ A maxima[kColumnWarps][32], sums[kColumnWarps][32];
  const int64_t batch = slot_blocks(blockIdx.x);
  const int lane = lane_of(threadIdx.x), warp = static_cast<int>(threadIdx.x) / 32;
  const int64_t slot = (blockIdx.x - batch * slot_blocks.divisor()) * 32 + lane;
  const bool has_slot = slot < p.num_slots;
  const L* column = static_cast<const L*>(p.logits) + batch * p.logits_batch_stride + slot;
  const uint8_t* mask = p.token_mask == nullptr ? nullptr : p.token_mask + batch * p.num_tokens;
  Softmax<A> softmax;
  bool something = false;
  for (int64_t first = warp; first < p.num_tokens; first += kBatch<A> * kColumnWarps) {
    A logits[kBatch<A>];
#pragma unroll
    for (int i = 0; i < kBatch<A>; ++i) {
      const int64_t token = first + i * kColumnWarps;
      const bool visible = token < p.num_tokens && (mask == nullptr || mask[token] != 0);
      logits[i] = visible && has_slot ? to_acc(column[token * p.logits_stride]) : -routing::infinity(A());
      something = something || visible;
    }
    softmax.add(logits);
  }
  maxima[warp][lane] = softmax.max;
  sums[warp][lane] = softmax.sum;
  something = __syncthreads_or(something) != 0;
  if (warp != 0 || !has_slot) return;
  for (int other = 1; other < kColumnWarps; ++other) softmax.merge(maxima[other][lane], sums[other][lane]);
  softmax.write(p.statistics, p.batch * p.num_slots, batch * p.num_slots + slot, something);
}

// A warp for each result.
template <class T>
__global__ void __launch_bounds__(kRowWarps * 32) soft_dots_kernel(const __grid_constant__ SoftMixBackwardParams p,
                                                                   acc_t<T>* dots, FastDivide row_blocks, bool vector) {
  using A = acc_t<T>;
  constexpr int kVector = 16 / sizeof(T);
  const int64_t per_batch = p.forward.dispatch ? p.forward.num_slots : p.forward.num_tokens;
  const RowOfWarp row_of_warp(row_blocks);
  const int64_t batch = row_of_warp.batch, row = row_of_warp.row;
  if (row >= per_batch) return;
  const int64_t result = batch * per_batch + row, width = p.forward.width;
  const T* grad = static_cast<const T*>(p.grad_mixed) + batch * p.grad_mixed_batch_stride + row * p.grad_mixed_stride;
  const T* mixed = static_cast<const T*>(p.forward.mixed) + result * width;
  const int lane = lane_of(threadIdx.x);
  A sums[kVector] = {};
#pragma unroll 2
  for (int64_t i = lane * kVector; i < width; i += 32 * kVector) {
    if (vector) {
      const Vector<T, kVector> a = load<kVector>(grad + i), b = load<kVector>(mixed + i);
#pragma unroll
      for (int j = 0; j < kVector; ++j) sums[j] += to_acc(a.values[j]) * to_acc(b.values[j]);
    } else {
#pragma unroll
      for (int j = 0; j < kVector; ++j) {
        if (i + j < width) sums[j] += to_acc(grad[i + j]) * to_acc(mixed[i + j]);
      }
    }
  }
#pragma unroll
  for (int half = kVector / 2; half > 0; half /= 2) {
#pragma unroll
    for (int j = 0; j < half; ++j) sums[j] += sums[j + half];
  }
#pragma unroll
  for (int step = 16; step > 0; step /= 2) sums[0] += __shfl_xor_sync(kAllLanes, sums[0], step);
  if (lane == 0) dots[result] = sums[0];
}

// Blocks of a sequence with a warp for each of so many rows.
int64_t row_blocks(int64_t rows) { return (rows + kRowWarps - 1) / kRowWarps; }

}  // namespace

Outcome soft_statistics(const SoftMixParams& p, Stream stream) {
  return with_type(p.logits_dtype, [&]<class L>(L*) -> Outcome {
    if (p.dispatch) {
      constexpr const char* kName = "soft_column_statistics";
      const int64_t slot_blocks = (p.num_slots + 31) / 32, blocks = p.batch * slot_blocks;
      if (blocks == 0) return {};
      if (blocks > INT32_MAX) return {Status::kUnsupported, 0, kName};
      return launch(kName, soft_column_statistics_kernel<L>, dim3(static_cast<uint32_t>(blocks)),
                    dim3(kColumnWarps * 32), 0, stream, p, FastDivide(static_cast<uint32_t>(slot_blocks)));
    }
    constexpr const char* kName = "soft_row_statistics";
    const int64_t of_sequence = row_blocks(p.num_tokens), blocks = p.batch * of_sequence;
    if (blocks == 0) return {};
    if (blocks > INT32_MAX) return {Status::kUnsupported, 0, kName};
    return launch(kName, soft_row_statistics_kernel<L>, dim3(static_cast<uint32_t>(blocks)), dim3(kRowWarps * 32), 0,
                  stream, p, FastDivide(static_cast<uint32_t>(of_sequence)), logits_in_quads(p));
  });
}

Outcome soft_dots(const SoftMixBackwardParams& p, void* dots, Stream stream) {
  constexpr const char* kName = "soft_dots";
  const SoftMixParams& f = p.forward;
  const int64_t of_sequence = row_blocks(f.num_results()), blocks = f.batch * of_sequence;
  if (blocks == 0) return {};
  if (blocks > INT32_MAX) return {Status::kUnsupported, 0, kName};
  const bool vector = in_pieces({p.grad_mixed, p.grad_mixed_batch_stride, p.grad_mixed_stride}, f.dtype, f.width, 16) &&
                      in_pieces({f.mixed, 0, f.width}, f.dtype, f.width, 16);
  return with_type(f.dtype, [&]<class T>(T*) {
    return launch(kName, soft_dots_kernel<T>, dim3(static_cast<uint32_t>(blocks)), dim3(kRowWarps * 32), 0, stream, p,
                  static_cast<acc_t<T>*>(dots), FastDivide(static_cast<uint32_t>(of_sequence)), vector);
  });
}

}  // namespace moe::cuda
