// The SIMT engine's inner product of a kBlockM x 64 tile: 128 threads, each with kBlockM / 8 rows x 4 columns of sums
// in registers, over blocks of k that alternate between two buffers in shared memory.
//
// Sums run over k ascending, one multiply-add after the other. float chains are at most 384 long, each from zero, and
// then added: a single chain over a long k loses digits. Nothing depends on kBlockM or on how operands are strided.
#pragma once

#include "cuda/grouped_gemm/simt/operand.cuh"

namespace moe::cuda::simt {

constexpr int kBlockN = 64;
constexpr int kChain = 384;

template <class T, int kBlockM>
struct TileShape {
  using A = acc_t<T>;
  static constexpr int kRowGroups = 8, kColumnGroups = 16;  // a warp is 4 x 8 of them
  static constexpr int kRows = kBlockM / kRowGroups, kColumns = kBlockN / kColumnGroups;
  // A thread's rows and columns come in pieces that load as vectors of at most 16 bytes.
  static constexpr int kWidest = 16 / sizeof(A);
  static constexpr int kRowPiece = kRows < kWidest ? kRows : kWidest;
  static constexpr int kColumnPiece = kColumns < kWidest ? kColumns : kWidest;
  static constexpr int kTileA = kBlockK<T> * (kBlockM + kPad), kTileB = kBlockK<T> * (kBlockN + kPad);

  static constexpr int kSumsStride = kBlockN + kWidest;
  static constexpr int kBuffers = 2 * (kTileA + kTileB), kSums = kBlockM * kSumsStride;
  // On a multiprocessor: as many as registers allow for.
  static constexpr int kMinBlocks = sizeof(T) == 8 ? 2 : kBlockM == 64 ? 3 : 4;
  static constexpr int kShared = kBuffers > kSums ? kBuffers : kSums;  // the sums take the buffers' place
};

template <class T, int kBlockM>
class Sums {
 public:
  using Shape = TileShape<T, kBlockM>;
  using A = acc_t<T>;

  __device__ explicit Sums(int thread) {
    const int warp = thread / 32, lane = thread % 32;
    row_ = (warp / 2 * 4 + lane / 8) * Shape::kRowPiece;
    column_ = (warp % 2 * 8 + lane % 8) * Shape::kColumnPiece;
  }

  __device__ void multiply(const A* a, const A* b) {
#pragma unroll
    for (int k = 0; k < kBlockK<T>; ++k) {
      A rows[Shape::kRows], columns[Shape::kColumns];
#pragma unroll
      for (int i = 0; i < Shape::kRows; i += Shape::kRowPiece) {
        const auto piece = load<Shape::kRowPiece>(a + k * (kBlockM + kPad) + row_ + i * Shape::kRowGroups);
#pragma unroll
        for (int j = 0; j < Shape::kRowPiece; ++j) rows[i + j] = piece.values[j];
      }
#pragma unroll
      for (int i = 0; i < Shape::kColumns; i += Shape::kColumnPiece) {
        const auto piece = load<Shape::kColumnPiece>(b + k * (kBlockN + kPad) + column_ + i * Shape::kColumnGroups);
#pragma unroll
        for (int j = 0; j < Shape::kColumnPiece; ++j) columns[i + j] = piece.values[j];
      }
#pragma unroll
      for (int i = 0; i < Shape::kRows; ++i) {
#pragma unroll
        for (int j = 0; j < Shape::kColumns; ++j) chain_[i][j] += rows[i] * columns[j];
      }
    }
  }

  __device__ void end_chain() {
#pragma unroll
    for (int i = 0; i < Shape::kRows; ++i) {
#pragma unroll
      for (int j = 0; j < Shape::kColumns; ++j) total_[i][j] += chain_[i][j], chain_[i][j] = 0;
    }
  }

  // Into [kBlockM, kSumsStride] of shared memory.
  __device__ void write(A* sums) const {
#pragma unroll
    for (int i = 0; i < Shape::kRows; ++i) {
      const int row = row_ + i / Shape::kRowPiece * Shape::kRowPiece * Shape::kRowGroups + i % Shape::kRowPiece;
#pragma unroll
      for (int j = 0; j < Shape::kColumns; j += Shape::kColumnPiece) {
        A piece[Shape::kColumnPiece];
#pragma unroll
        for (int l = 0; l < Shape::kColumnPiece; ++l) piece[l] = total_[i][j + l];
        store_whole(sums + row * Shape::kSumsStride + column_ + j * Shape::kColumnGroups, piece);
      }
    }
  }

 private:
  int row_, column_;
  A chain_[Shape::kRows][Shape::kColumns] = {}, total_[Shape::kRows][Shape::kColumns] = {};
};

// The product over k from 0 to k_end, left in shared memory as [kBlockM, kSumsStride]; all threads see it. `shared` is
// kShared accumulators, 16-byte aligned. Tables of offsets along k are the hooks' business: select(step, a, b) points
// to those of a step, prefetch(step) asks for a later step's values, commit(step) writes them to shared memory.
template <class T, int kBlockM, class OperandA, class OperandB, class Hooks>
__device__ void product_of_tile(OperandA& a, OperandB& b, int k_end, int thread, acc_t<T>* shared, Hooks& hooks) {
  using Shape = TileShape<T, kBlockM>;
  constexpr int kK = kBlockK<T>;
  const int steps = (k_end + kK - 1) / kK;
  const auto tile_a = [&](int step) { return shared + step % 2 * (Shape::kTileA + Shape::kTileB); };
  const auto tile_b = [&](int step) { return tile_a(step) + Shape::kTileA; };
  Sums<T, kBlockM> sums(thread);
  typename OperandA::Staged staged_a;
  typename OperandB::Staged staged_b;
  if (steps > 0) {
    hooks.select(0, a, b);
    a.load(0, staged_a);
    b.load(0, staged_b);
    a.store(staged_a, tile_a(0));
    b.store(staged_b, tile_b(0));
  }
  __syncthreads();
  int in_chain = 0;
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    const bool more = step + 1 < steps;
    if (more) {
      hooks.select(step + 1, a, b);
      a.load((step + 1) * kK, staged_a);
      b.load((step + 1) * kK, staged_b);
    }
    hooks.prefetch(step + 2);
    sums.multiply(tile_a(step), tile_b(step));
    if (sizeof(acc_t<T>) == 4 && ++in_chain == kChain / kK) {
      sums.end_chain();
      in_chain = 0;
    }
    if (more) {
      a.store(staged_a, tile_a(step + 1));
      b.store(staged_b, tile_b(step + 1));
    }
    hooks.commit(step + 2);
    __syncthreads();
  }
  sums.end_chain();
  sums.write(shared);
  __syncthreads();
}

}  // namespace moe::cuda::simt
