// Expert weights in the order in which AMX multiplies them: for inference on the CPU.
//
//   [E][panels of 32 columns][parts][steps of 32 along k][2 tiles][16 pairs of k][16 columns][2]      bfloat16
//
// A column is an output channel. Where gate and up are paired there are two parts, the gate's columns and then those of
// up that belong to them, whether they alternated or not. n (of one part) and k are multiples of 32.
#pragma once

#include "moe/grouped_gemm.h"

namespace moe {

constexpr int64_t kTiledMultiple = 32;
constexpr int64_t kTiledStep = kTiledMultiple * kTiledMultiple;  // elements of a panel's step

struct TileWeightsParams {
  int64_t num_experts;
  int64_t parts;      // 2: gate and up
  int64_t part_size;  // n of one part
  int64_t k;
  bool interleaved;     // gate and up rows of the source alternate
  ExpertMatrix source;  // [parts * part_size, k]
  void* out;
};

}  // namespace moe
