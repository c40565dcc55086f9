// mma.sync of f64.
//
// A register's 32 lanes are 8 rows of 4 elements along k, for A (rows 0–7 and 8–15 in turn, then the next k) and for B
// (columns). Accumulators come in pairs of registers: even and odd columns.
#include <cmath>
#include <cstring>
#include <string>

#include "core/block.h"
#include "core/decode.h"
#include "exec/mma.h"

namespace vgpu {
namespace {

// extra: rows / 8, k / 4.
void execute_mma_double(Warp& warp, const Instruction& i) {
  if (!converged(warp, i)) return;
  require_full_warp(warp, i);
  const uint32_t halves = i.extra[0], steps = i.extra[1];
  const Slot *d = i.list.data(), *a = d + 2 * halves, *b = a + halves * steps, *c = b + steps;
  double sums[4][kLanes];
  for (uint32_t r = 0; r < 2 * halves; ++r) {
    const double* from = warp.f64(c[r]);
    for (uint32_t lane = 0; lane < kLanes; ++lane) {
      const uint32_t row = lane / 4, column = 2 * (lane % 4) + r % 2;
      double sum = from[lane];
      for (uint32_t s = 0; s < steps; ++s) {
        const double* x = warp.f64(a[s * halves + r / 2]) + 4 * row;
        const double* y = warp.f64(b[s]) + 4 * column;
        for (int k = 0; k < 4; ++k) sum = std::fma(x[k], y[k], sum);
      }
      sums[r][lane] = sum;
    }
  }
  for (uint32_t r = 0; r < 2 * halves; ++r) std::memcpy(warp.f64(d[r]), sums[r], sizeof sums[r]);
  count_macs(warp, i, halves * 8 * 8 * steps * 4);
  advance(warp);
}

}  // namespace

void decode_mma_double(Decoder& d) {
  const std::string shape = d.take_any({"m8n8k4", "m16n8k4", "m16n8k8", "m16n8k16"});
  if (shape.empty()) d.unknown("wants a shape that f64 has");
  if (!d.take("row") || !d.take("col")) d.unknown("wants .row.col");
  d.take("rn");
  for (int t = 0; t < 4; ++t) {
    if (!d.take("f64")) d.unknown("multiplies f64 with f64 only");
  }
  d.out.extra[0] = shape[1] == '8' ? 1 : 2;
  d.out.extra[1] = static_cast<uint32_t>(std::stoul(shape.substr(shape.find('k') + 1))) / 4;
  const uint32_t halves = d.out.extra[0], steps = d.out.extra[1];
  const TypeInfo f64 = type_info("f64");
  add_fragment(d, 0, 2 * halves, f64, true);
  add_fragment(d, 1, halves * steps, f64, false);
  add_fragment(d, 2, steps, f64, false);
  add_fragment(d, 3, 2 * halves, f64, false);
  d.out.execute = execute_mma_double;
}

}  // namespace vgpu
