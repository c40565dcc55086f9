// route, a tile of tokens at a time: score, selection and weights while the rows stay in the first-level cache.
// Contract: moe/route.h.
#pragma once

#include "cpu/vectorized/route_any_row.h"
#include "cpu/vectorized/route_tile.h"

namespace moe::cpu::MOE_ISA {

namespace routing {

template <class T>
static int64_t forward(const RouteParams& p, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  const int64_t padded = blocks_of(p.num_experts) * kBlock;
  constexpr bool kHasTiles = sizeof(A) == sizeof(float);
  const bool tiled = kHasTiles && Tile::serves(p);
  const int64_t row_bytes = (Row<A>::bytes(padded) + 63) / 64 * 64;
  const Memory memory(row_bytes + (tiled ? Tile::bytes(padded) : 0));
  if (memory.data() == nullptr) return kOutOfMemory;
  const Row<A> row(memory.data(), padded);
  for (int64_t i = 0; i < padded; ++i) row.bias[i] = p.bias != nullptr && i < p.num_experts ? A(p.bias[i]) : A(0);

  if constexpr (kHasTiles) {
    if (tiled) {
      Tile tile(p, memory.data() + row_bytes, row);
      for (int64_t t = begin; t < end; t += tile.num_rows()) {
        const int64_t last = t + tile.num_rows() < end ? t + tile.num_rows() : end;
        const int64_t bad_token = tile.template run<T>(t, last);
        if (bad_token >= 0) return bad_token;
      }
      return -1;
    }
  }
  for (int64_t t = begin; t < end; ++t) {
    if (!route_row<T>(p, row, t)) return t;
  }
  return -1;
}

}  // namespace routing

static int64_t route_forward(const RouteParams& p, int64_t begin, int64_t end) {
  switch (p.dtype) {
    case DType::kFloat32:
      return routing::forward<float>(p, begin, end);
    case DType::kBFloat16:
      return routing::forward<bf16>(p, begin, end);
    case DType::kFloat16:
      return routing::forward<fp16>(p, begin, end);
    case DType::kFloat64:
      return routing::forward<double>(p, begin, end);
  }
  return -1;
}

}  // namespace moe::cpu::MOE_ISA
