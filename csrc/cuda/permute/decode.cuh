// The order of rows without a sort, for at most kMaxDecodeSlots slots: every block of a product finds its own tile
// among all ids, so no kernel has to run before the first product.
//
// Each slot compares its expert with every other: slots of lower experts, and earlier ones of its own, come before it.
// That is its row, and its rank in its expert says whether a tile begins there. The rows where tiles begin are bits of
// one mask, in which a block looks up its tile. Rows and tiles are those of permute.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/permute/tiles.h"

namespace moe::cuda {

constexpr int kDecodeWords = static_cast<int>(kMaxDecodeSlots) / 32;

struct alignas(16) DecodeShared {
  int32_t experts[kMaxDecodeSlots];      // of slots, kDecodeNone for sentinels and past the last
  int32_t slot_of_row[kMaxDecodeSlots];  // -1 past the last
  uint32_t tile_begins[kDecodeWords];    // bit r % 32 of word r / 32: at row r, for tiles of an expert
  int32_t num_rows;                      // of all experts
};
// Numbers of int32 that decode_tile needs as scratch, at a multiple of 16 bytes.
constexpr int kDecodeScratch = sizeof(DecodeShared) / sizeof(int32_t);
constexpr int32_t kDecodeNone = INT32_MAX;

namespace decoding {

__device__ inline int32_t expert_of(const DecodeRouting& routing, int slot) {
  const int64_t id = routing.ids_are_int64 ? static_cast<const int64_t*>(routing.topk_ids)[slot]
                                           : static_cast<const int32_t*>(routing.topk_ids)[slot];
  return id >= 0 && id < routing.num_experts ? static_cast<int32_t>(id) : kDecodeNone;
}

// The position of the set bit that `rank` set bits precede.
__device__ inline int select_bit(uint32_t word, int rank) {
  int position = 0;
#pragma unroll
  for (int width = 16; width > 0; width /= 2) {
    const int below = __popc(word >> position & ((1u << width) - 1));
    if (rank >= below) rank -= below, position += width;
  }
  return position;
}

// The row where tile `index` of the experts begins; shared.num_rows past the last.
__device__ inline int tile_begin(const DecodeShared& shared, int index) {
#pragma unroll
  for (int word = 0; word < kDecodeWords; ++word) {
    const uint32_t bits = shared.tile_begins[word];
    const int tiles = __popc(bits);
    if (index < tiles) return word * 32 + select_bit(bits, index);
    index -= tiles;
  }
  return shared.num_rows;
}

__device__ inline int expert_tiles(const DecodeShared& shared) {
  int tiles = 0;
#pragma unroll
  for (int word = 0; word < kDecodeWords; ++word) tiles += __popc(shared.tile_begins[word]);
  return tiles;
}

template <int kBlockM>
__device__ Tile tile_at(const DecodeShared& shared, int num_slots, int index) {
  const int of_experts = expert_tiles(shared);
  if (index < of_experts) {
    const int begin = tile_begin(shared, index);
    return {shared.experts[shared.slot_of_row[begin]], begin, tile_begin(shared, index + 1) - begin, 0};
  }
  const int begin = min(shared.num_rows + (index - of_experts) * kBlockM, num_slots);
  return {-1, begin, min(kBlockM, num_slots - begin), 0};
}

}  // namespace decoding

// All kThreads threads of the block call. Fills slots[0 .. kBlockM) in shared memory with the slots of the tile's rows,
// -1 past the last and for rows of no expert; the block is synchronised when it returns. num_rows of the tile is 0 past
// the last tile. scratch: kDecodeScratch numbers in shared memory at a multiple of 16 bytes, kept for decode_publish.
template <int kBlockM, int kThreads>
__device__ Tile decode_tile(const TileList& list, int tile_index, int32_t* slots, int32_t* scratch) {
  constexpr int kSlots = static_cast<int>(kMaxDecodeSlots);
  DecodeShared& shared = *reinterpret_cast<DecodeShared*>(scratch);
  const int thread = static_cast<int>(threadIdx.x), num_slots = list.decode.num_slots;
  for (int i = thread; i < kSlots; i += kThreads) {
    shared.experts[i] = i < num_slots ? decoding::expert_of(list.decode, i) : kDecodeNone;
    shared.slot_of_row[i] = -1;
    if (i < kDecodeWords) shared.tile_begins[i] = 0;
    if (i == 0) shared.num_rows = 0;
  }
  __syncthreads();
  for (int slot = thread; slot < num_slots; slot += kThreads) {
    const int32_t own = shared.experts[slot];
    if (own == kDecodeNone) continue;
    int lower = 0, earlier = 0;
    for (int i = 0; i < num_slots; i += 4) {
      const int4 four = *reinterpret_cast<const int4*>(shared.experts + i);
      const int32_t others[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        lower += others[j] < own ? 1 : 0;
        earlier += others[j] == own && i + j < slot ? 1 : 0;
      }
    }
    const int row = lower + earlier;
    shared.slot_of_row[row] = slot;
    if (earlier % kBlockM == 0) atomicOr(&shared.tile_begins[row / 32], 1u << row % 32);
    atomicAdd(&shared.num_rows, 1);
  }
  __syncthreads();
  const Tile tile = decoding::tile_at<kBlockM>(shared, num_slots, tile_index);
  for (int i = thread; i < kBlockM; i += kThreads) {
    slots[i] = i < tile.num_rows ? shared.slot_of_row[tile.first_row + i] : -1;
  }
  __syncthreads();
  return tile;
}

// Writes what later kernels read: all that permute writes, for tiles of kBlockM rows. One block calls, with all its
// threads, after its decode_tile and with the same scratch.
template <int kBlockM, int kThreads>
__device__ void decode_publish(const TileList& list, const int32_t* scratch) {
  const DecodeShared& shared = *reinterpret_cast<const DecodeShared*>(scratch);
  const DecodeRouting& routing = list.decode;
  const int thread = static_cast<int>(threadIdx.x), num_slots = routing.num_slots;
  for (int i = thread; i < num_slots; i += kThreads) {
    const int slot = shared.slot_of_row[i];
    routing.row_to_slot[i] = slot;
    if (slot >= 0) routing.slot_to_row[slot] = i;
    if (shared.experts[i] == kDecodeNone) routing.slot_to_row[i] = -1;
  }
  for (int64_t expert = thread; expert <= routing.num_experts; expert += kThreads) {
    int begin = 0;  // rows of lower experts
    for (int end = shared.num_rows; begin < end;) {
      const int middle = (begin + end) / 2;
      if (shared.experts[shared.slot_of_row[middle]] < expert) {
        begin = middle + 1;
      } else {
        end = middle;
      }
    }
    routing.expert_offsets[expert] = begin;
  }
  const int num_tiles = decoding::expert_tiles(shared) + (num_slots - shared.num_rows + kBlockM - 1) / kBlockM;
  for (int i = thread; i < num_tiles; i += kThreads) {
    list.tiles[i] = decoding::tile_at<kBlockM>(shared, num_slots, i);
  }
  if (thread == 0) *list.count = num_tiles;
}

}  // namespace moe::cuda
