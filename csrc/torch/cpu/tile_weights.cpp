// tile_weights for CPU tensors. Contract: moe/tiled_weights.h and schema.cpp.
#include "cpu/tiled/tile_weights.h"

#include <torch/csrc/stable/library.h>

#include "torch/checks.h"
#include "torch/cpu/huge_pages.h"
#include "torch/cpu/threads.h"

namespace moe::torch_ops {

namespace {

Tensor tile_weights(const Tensor& weight, int64_t parts, bool interleaved, bool transposed) {
  const Checks checks("tile_weights");
  checks.has_dims(weight, "weight", 3, transposed ? "[E, K, G]" : "[E, G, K]");
  checks.has_dtype(weight, "weight", ScalarType::BFloat16);
  checks.check(parts == 1 || parts == 2, "parts must be 1 or 2, got ", parts);
  const int64_t n_dim = transposed ? 2 : 1, k_dim = transposed ? 1 : 2;
  const int64_t experts = weight.size(0), n = weight.size(n_dim), k = weight.size(k_dim);
  checks.check(n % (parts * kTiledMultiple) == 0 && k % kTiledMultiple == 0, "weight must be ", parts * kTiledMultiple,
               " i by ", kTiledMultiple, " j for each expert, got ", n, " by ", k);
  const int64_t panels = n / parts / kTiledMultiple, steps = k / kTiledMultiple;
  Tensor tiles = empty_like(weight, {experts, panels, parts, steps, kTiledStep}, ScalarType::BFloat16);
  ask_for_huge_pages(tiles);
  cpu::tile_weights({.num_experts = experts,
                     .parts = parts,
                     .part_size = n / parts,
                     .k = k,
                     .interleaved = interleaved,
                     .source = {weight.const_data_ptr(), weight.stride(0), weight.stride(n_dim), weight.stride(k_dim)},
                     .out = tiles.mutable_data_ptr()},
                    torch_threads());
  return tiles;
}

}  // namespace

}  // namespace moe::torch_ops

STABLE_TORCH_LIBRARY_IMPL(moe_ext, CPU, m) { m.impl("tile_weights", TORCH_BOX(&moe::torch_ops::tile_weights)); }
