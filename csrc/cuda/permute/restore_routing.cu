// What forward knew about the order of rows, made again from what is kept for backward. Contract:
// cuda/permute/permute.h.
//
// Block 0 makes the tiles, as permute does; the other blocks scatter slots to their rows. Rows that no slot names must
// read -1. One block clears them itself before it scatters. Many blocks cannot wait for each other, so they find the
// rows cleared by a memset. Should two slots name one row, the later slot gets it, in whatever order they come.
#include "cuda/common/launch_kernel.cuh"
#include "cuda/permute/permute.h"
#include "cuda/permute/tile_scan.cuh"

namespace moe::cuda {

namespace {

constexpr int kThreads = 1024;
constexpr int64_t kOneBlockSlots = 16 * 1024;
constexpr int64_t kSlotsPerBlock = 4 * kThreads;

struct Restore {
  const int32_t* expert_offsets;  // null: slots may name any of num_rows rows
  uint32_t num_experts;
  const int32_t* slot_to_row;
  uint32_t num_slots;
  int32_t* row_to_slot;
  int32_t num_rows;
  TileOutput tiles;
};

// Expert e owns the rows from the highest of offsets 0 .. e up to the highest of offsets 0 .. e + 1, none of them below
// 0 or past num_rows. For offsets that rise from 0 that is what they say; any others still cut up the rows.
__device__ void make_tiles(const Restore& p) {
  __shared__ TileScanShared<kThreads> scan_shared;
  __shared__ int32_t maximum_scratch[kThreads / 32];
  TileScan<kThreads> scan(p.tiles, scan_shared, p.num_rows);
  for (uint32_t first = 0; first < p.num_experts; first += kThreads) {
    const uint32_t expert = first + threadIdx.x;
    const int32_t offset = expert < p.num_experts ? p.expert_offsets[expert + 1] : 0;
    const int32_t own_end = min(max(offset, 0), p.num_rows);
    const int32_t end_before = block_exclusive_scan<Maximum<int32_t>, kThreads>(own_end, 0, maximum_scratch).before;
    scan.add(static_cast<int32_t>(first), max(own_end - max(end_before, scan.rows()), 0));
  }
  scan.finish(p.num_rows);
}

__device__ void scatter_slots(const Restore& p, uint32_t first, uint32_t step) {
  const int32_t end = p.expert_offsets == nullptr ? p.num_rows : min(p.expert_offsets[p.num_experts], p.num_rows);
#pragma unroll 4
  for (uint32_t slot = first; slot < p.num_slots; slot += step) {
    const int32_t row = p.slot_to_row[slot];
    if (row >= 0 && row < end) atomicMax(&p.row_to_slot[row], static_cast<int32_t>(slot));
  }
}

// kOneBlock: clears, scatters, makes tiles. Otherwise block 0 makes tiles and the others scatter into rows of -1.
template <bool kOneBlock>
__global__ void __launch_bounds__(kThreads, 1) restore_routing_kernel(Restore p) {
  if constexpr (kOneBlock) {
    if (p.row_to_slot != nullptr) {
      for (int32_t row = static_cast<int32_t>(threadIdx.x); row < p.num_rows; row += kThreads) p.row_to_slot[row] = -1;
      __syncthreads();
      scatter_slots(p, threadIdx.x, kThreads);
    }
  } else if (blockIdx.x > 0) {
    return scatter_slots(p, (blockIdx.x - 1) * kThreads + threadIdx.x, (gridDim.x - 1) * kThreads);
  }
  if (p.tiles.count != nullptr) make_tiles(p);
}

bool is_valid(int64_t num_tokens, int64_t top_k, int64_t num_experts, int64_t num_rows) {
  return num_tokens >= 0 && top_k >= 0 && num_experts >= 0 && num_experts < INT32_MAX && num_rows >= 0 &&
         num_rows < INT32_MAX && (top_k == 0 || num_tokens < INT32_MAX / top_k);
}

Outcome restore(const Restore& p, Stream stream) {
  const bool scatters = p.row_to_slot != nullptr;
  if (!scatters && p.tiles.count == nullptr) return {};
  if (!scatters || std::max<int64_t>(p.num_slots, p.num_rows) <= kOneBlockSlots) {
    return launch("restore_routing", restore_routing_kernel<true>, 1, kThreads, 0, stream, p);
  }
  const cudaError_t error =
      cudaMemsetAsync(p.row_to_slot, 0xff, p.num_rows * sizeof(int32_t), static_cast<cudaStream_t>(stream));
  if (error != cudaSuccess) return failed("restore_routing", error);
  const unsigned blocks = static_cast<unsigned>(1 + (p.num_slots + kSlotsPerBlock - 1) / kSlotsPerBlock);
  return launch("restore_routing", restore_routing_kernel<false>, blocks, kThreads, 0, stream, p);
}

}  // namespace

Outcome restore_routing(const RestoreParams& p, Stream stream) {
  if (!is_valid(p.num_tokens, p.top_k, p.num_experts, p.num_rows) ||
      (p.tiles.count != nullptr && p.tiles.block_m < 1)) {
    return {Status::kInvalidArgument};
  }
  const int64_t num_slots = p.num_tokens * p.top_k;
  return restore({p.expert_offsets, static_cast<uint32_t>(p.num_experts), p.slot_to_row,
                  static_cast<uint32_t>(num_slots), p.row_to_slot, static_cast<int32_t>(p.num_rows), p.tiles},
                 stream);
}

Outcome invert_slots(const int32_t* slot_to_row, int64_t num_slots, int32_t* row_to_slot, int64_t num_rows,
                     Stream stream) {
  if (!is_valid(num_slots, 1, 0, num_rows)) return {Status::kInvalidArgument};
  return restore({nullptr, 0, slot_to_row, static_cast<uint32_t>(num_slots), row_to_slot,
                  static_cast<int32_t>(num_rows), TileOutput{}},
                 stream);
}

}  // namespace moe::cuda
