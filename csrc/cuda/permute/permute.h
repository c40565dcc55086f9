// permute and its relatives on CUDA. Contracts: moe/permute.h.
#pragma once

#include "cuda/launch.h"
#include "cuda/permute/tiles.h"
#include "moe/permute.h"

namespace moe::cuda {

// Where permute also writes the tiles that products need; null pointers: not wanted.
struct TileOutput {
  int32_t block_m;
  Tile* tiles;     // [max_tiles(R, E, block_m)]
  int32_t* count;  // [1]
};

// One launch for few rows, three for many. Bytes that permute needs as workspace, 0 with one launch.
int64_t permute_workspace_bytes(const PermuteParams& params);
Outcome permute(const PermuteParams& params, const TileOutput& tiles, void* workspace, Stream stream);

// From what is kept for backward: row_to_slot as the inverse of slot_to_row (every entry of [R] is written, -1 where
// there is no slot; of two slots that name one row the later counts), and the tiles. One launch, for many slots after a
// memset. What lies outside the rows is ignored, never followed.
struct RestoreParams {
  int64_t num_tokens, top_k, num_experts;
  const int32_t* expert_offsets;
  const int32_t* slot_to_row;
  int32_t* row_to_slot;  // [R], null: only tiles
  int64_t num_rows;      // R
  TileOutput tiles;
};
// Tiles alone for a given expert_offsets: num_tokens and top_k are not read then. Offsets that fall, or lie
// outside 0 .. num_rows, give tiles that stay within 0 .. num_rows.
Outcome restore_routing(const RestoreParams& params, Stream stream);

// The inverse alone, for any number of rows.
Outcome invert_slots(const int32_t* slot_to_row, int64_t num_slots, int32_t* row_to_slot, int64_t num_rows,
                     Stream stream);

// num_valid of moe/permute.h is unknown to the host: it is expert_offsets[num_experts] here.
struct GatherRowsLaunch {
  GatherRowsParams params;  // num_valid is not read
  const int32_t* expert_offsets;
  int64_t num_experts;
  int64_t num_tokens;  // slots at or past num_tokens * top_k, or negative: a row of zeros
};
Outcome gather_rows(const GatherRowsLaunch& launch, Stream stream);

}  // namespace moe::cuda
