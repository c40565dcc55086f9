// Tiles of rows: how a product knows which expert and which rows a block works on.
//
// The rows of each expert are cut into tiles of block_m rows; the last may be short. Then come tiles for the rows of no
// expert (expert = -1), which get zeros where a result promises them. The list is made on the device. Its length is not
// known to the host, but bounded: grids have max_tiles() tiles, and blocks past *count end at once.
#pragma once

#include <algorithm>
#include <cstdint>

namespace moe::cuda {

struct alignas(16) Tile {
  int32_t expert;
  int32_t first_row, num_rows;
  int32_t reserved;  // 0
};

// Few slots need no sort: each block finds its own rows among all ids (see permute/decode.cuh), and block 0 writes what
// later kernels need. Same order of rows as permute.
constexpr int64_t kMaxDecodeSlots = 128;

struct DecodeRouting {
  const void* topk_ids = nullptr;  // [T,K] contiguous; null: there is a tile list
  bool ids_are_int64 = false;
  int32_t num_slots = 0, num_experts = 0;
  int32_t* expert_offsets = nullptr;  // written, as permute does
  int32_t* row_to_slot = nullptr;
  int32_t* slot_to_row = nullptr;
};

struct TileList {
  Tile* tiles;
  int32_t* count;
  DecodeRouting decode;  // with topk_ids: tiles and count are written by the first product and read by later ones
};

inline int64_t max_tiles(int64_t num_rows, int64_t num_experts, int64_t block_m) {
  return std::min(num_rows, num_rows / block_m + std::min(num_experts, num_rows) + 2);
}

}  // namespace moe::cuda
