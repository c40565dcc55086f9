// Done once for each weight, so plain loops will do: a line of a tile takes two neighbours along k from each of 16
// columns.
#include "cpu/tiled/tile_weights.h"

#include <cstring>

namespace moe::cpu {
namespace {

constexpr int64_t kTileColumns = 16, kPairs = kTiledMultiple / 2;

// 16 columns and 32 of k, from `source` on.
void fill_tile(const uint16_t* source, int64_t column_stride, int64_t k_stride, uint16_t* tile) {
  for (int64_t column = 0; column < kTileColumns; ++column) {
    const uint16_t* from = source + column * column_stride;
    uint16_t* to = tile + 2 * column;
    for (int64_t pair = 0; pair < kPairs; ++pair, from += 2 * k_stride, to += 2 * kTileColumns) {
      if (k_stride == 1) {
        std::memcpy(to, from, 2 * sizeof(uint16_t));
      } else {
        to[0] = from[0];
        to[1] = from[k_stride];
      }
    }
  }
}

}  // namespace

void tile_weights(const TileWeightsParams& p, const Parallel& parallel) {
  const int64_t panels = p.part_size / kTiledMultiple, steps = p.k / kTiledMultiple;
  const bool alternates = p.parts == 2 && p.interleaved;
  const int64_t column_stride = p.source.n_stride * (alternates ? 2 : 1);
  parallel.for_each(p.num_experts * panels, [&](int64_t index) {
    const auto* expert = static_cast<const uint16_t*>(p.source.data) + index / panels * p.source.expert_stride;
    auto* to = static_cast<uint16_t*>(p.out) + index * p.parts * steps * kTiledStep;
    for (int64_t part = 0; part < p.parts; ++part) {
      const uint16_t* from = expert + part * (alternates ? 1 : p.part_size) * p.source.n_stride +
                             index % panels * kTiledMultiple * column_stride;
      for (int64_t step = 0; step < steps; ++step, from += kTiledMultiple * p.source.k_stride) {
        for (int64_t tile = 0; tile < 2; ++tile, to += kTiledStep / 2) {
          fill_tile(from + tile * kTileColumns * column_stride, column_stride, p.source.k_stride, to);
        }
      }
    }
  });
}

}  // namespace moe::cpu
