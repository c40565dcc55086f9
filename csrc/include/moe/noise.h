// noise: random numbers that are a function of (seed, index) alone, the same bits on every device.
//
// Number i is made of word i % 4 of block i / 4 of Philox 4x32-10 (Salmon et al. 2011, "Parallel random numbers: as
// easy as 1, 2, 3"), whose counter is the number of the block and whose key is the seed, 64 bits each, low half first.
// With w that word as an unsigned integer:
//   uniform: (floor(w / 2^9) + 1/2) 2^-23: in (0, 1), neither end is ever reached
//   gumbel:  -log(-log(1 - v)), v = (floor(w / 2) + 1/2) 2^-31 rounded to float, and below 1
//   normal:  Box and Muller (1958): words 2j and 2j + 1 are the radius sqrt(-2 log v) and the angle 2 pi w 2^-32 of
//            numbers 2j (cosine) and 2j + 1 (sine)
#pragma once

#include "moe/types.h"

namespace moe {

enum class NoiseKind : int32_t { kUniform, kNormal, kGumbel };

constexpr int64_t kNoiseBlock = 4;  // numbers that one run of the generator makes

struct NoiseParams {
  NoiseKind kind;
  int64_t count;
  const int64_t* seed;  // one value, where `out` is
  float* out;           // [count]
};

}  // namespace moe
