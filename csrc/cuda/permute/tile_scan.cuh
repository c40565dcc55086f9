// Cuts the rows of every expert into tiles, in one block. Experts come in rounds of one per thread: a prefix sum says
// where each expert's rows and tiles begin, then the threads share out the tiles of the round. However the rows are
// spread over experts, no thread writes more than its share of the list, and any number of experts takes the same
// shared memory.
#pragma once

#include <cassert>

#include "cuda/permute/block_scan.cuh"
#include "cuda/permute/permute.h"

namespace moe::cuda {

template <int kThreads>
struct TileScanShared {
  uint64_t scan[kThreads / 32];
  // Of the experts of a round.
  int32_t first_tile[kThreads];
  int32_t first_row[kThreads + 1];
};

// Tile i of the list, of rows of no expert as well.
__device__ inline void store_tile(Tile* tiles, int64_t i, int32_t expert, int32_t first_row, int32_t num_rows) {
  *reinterpret_cast<int4*>(tiles + i) = make_int4(expert, first_row, num_rows, 0);
}

template <int kThreads>
class TileScan {
 public:
  // Rows past most_rows end the launch with cudaErrorAssert: buffers have no place for them.
  __device__ TileScan(const TileOutput& output, TileScanShared<kThreads>& shared, int32_t most_rows)
      : output_(output), shared_(shared), most_rows_(most_rows) {}

  // All threads call, thread i with the number of rows of expert first_expert + i, 0 past the last. Returns the first
  // row of the thread's expert.
  __device__ int32_t add(int32_t first_expert, int32_t num_rows) {
    const int thread = static_cast<int>(threadIdx.x);
    const uint64_t num_tiles = output_.count == nullptr ? 0 : tiles_of(num_rows);
    const uint64_t own = num_tiles << 32 | static_cast<uint32_t>(num_rows);
    const Scanned<uint64_t> scanned = block_exclusive_scan<Sum<uint64_t>, kThreads>(own, uint64_t{0}, shared_.scan);
    const int32_t first_row = rows_ + static_cast<int32_t>(scanned.before);
    rows_ += static_cast<int32_t>(scanned.total);
    // Not assert(), which a release build leaves out.
    if (rows_ > most_rows_) __assert_fail("more slots name an expert than max_rows", "moe_ext::fused_experts", 0, "");
    if (output_.count == nullptr) return first_row;

    shared_.first_tile[thread] = static_cast<int32_t>(scanned.before >> 32);
    shared_.first_row[thread] = first_row;
    if (thread == 0) shared_.first_row[kThreads] = rows_;
    __syncthreads();
    const int32_t round_tiles = static_cast<int32_t>(scanned.total >> 32);
    for (int32_t tile = thread; tile < round_tiles; tile += kThreads) {
      const int owner = last_that_begins_by(tile);
      const int32_t row = shared_.first_row[owner] + (tile - shared_.first_tile[owner]) * output_.block_m;
      store_tile(output_.tiles, tiles_ + tile, first_expert + owner, row,
                 min(output_.block_m, shared_.first_row[owner + 1] - row));
    }
    tiles_ += round_tiles;
    __syncthreads();
    return first_row;
  }

  // After the last round: tiles for the rows from rows() to num_rows, and the count.
  __device__ void finish(int32_t num_rows) {
    if (output_.count == nullptr) return;
    const int32_t rest = tiles_of(num_rows - rows_);
    for (int32_t tile = static_cast<int32_t>(threadIdx.x); tile < rest; tile += kThreads) {
      const int32_t row = rows_ + tile * output_.block_m;
      store_tile(output_.tiles, tiles_ + tile, -1, row, min(output_.block_m, num_rows - row));
    }
    if (threadIdx.x == 0) *output_.count = tiles_ + rest;
  }

  // Rows of all experts so far.
  __device__ int32_t rows() const { return rows_; }

 private:
  __device__ int32_t tiles_of(int32_t num_rows) const {
    const uint32_t block_m = static_cast<uint32_t>(output_.block_m);
    return static_cast<int32_t>((static_cast<uint32_t>(num_rows) + block_m - 1) / block_m);
  }

  // The last expert of the round whose first tile is not after `tile`: experts without rows begin where the next does.
  __device__ int last_that_begins_by(int32_t tile) const {
    int found = 0;
#pragma unroll
    for (int step = kThreads / 2; step > 0; step /= 2) {
      if (found + step < kThreads && shared_.first_tile[found + step] <= tile) found += step;
    }
    return found;
  }

  TileOutput output_;
  TileScanShared<kThreads>& shared_;
  const int32_t most_rows_;
  int32_t rows_ = 0, tiles_ = 0;
};

}  // namespace moe::cuda
