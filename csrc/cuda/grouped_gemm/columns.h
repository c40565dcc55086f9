// Which columns of a weight a tile holds, so that gate and up of one output column meet in one tile.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define MOE_HOST_DEVICE __host__ __device__
#else
#define MOE_HOST_DEVICE
#endif

namespace moe::cuda {

enum class ColumnOrder : int32_t {
  kPlain,        // tile column j is weight column first + j
  kSplit,        // the first half of a tile: gate columns first + j; the second half: the up columns n / 2 + first + j
  kInterleaved,  // tile columns 2j and 2j + 1: gate and up of output column first + j
};

// `first` counts output columns: those of the activation where there are two per output, else those of the weight.
struct TileColumns {
  ColumnOrder order;
  int32_t n;      // columns of the weight
  int32_t first;  // output column at which the tile (or slice) begins

  MOE_HOST_DEVICE int32_t outputs() const { return order == ColumnOrder::kPlain ? n : n / 2; }

  // The weight's column under tile column j of `width`, or -1 past the end. Eight columns from a multiple of eight on
  // are neighbours in the weight, whatever the order, when width is a multiple of 16.
  MOE_HOST_DEVICE int32_t weight_column(int32_t j, int32_t width) const {
    if (order == ColumnOrder::kSplit) {
      const int32_t half = width / 2, output = first + (j < half ? j : j - half);
      return output < n / 2 ? output + (j < half ? 0 : n / 2) : -1;
    }
    const int32_t column = (order == ColumnOrder::kInterleaved ? 2 * first : first) + j;
    return column < n ? column : -1;
  }
};

}  // namespace moe::cuda
