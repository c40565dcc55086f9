// Epilogues of a product that stands turned: a row of c is one column of the result, for all of a job's rows.
//
// Elementwise work is done there, where a column's bias is one number and a row's weight one lane. Two columns at a
// time are then rounded to pairs and turned back, half as many lanes to move as floats would be.
#pragma once

#include "cpu/amx/pack.h"
#include "cpu/avx512/swiglu.h"
#include "cpu/vectorized/epilogue.h"

namespace moe::cpu::MOE_ISA {

// Pairs (first[i], second[i]) rounded to bfloat16.
MOE_INLINE __m512i round_pairs(__m512 first, __m512 second) {
  const __m512i halves = (__m512i)_mm512_cvtne2ps_pbh(second, first);
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21,
                                         5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return _mm512_permutexvar_epi16(order, halves);
}

// Where 32 columns of rows go: column j of row i to out + i * row_stride + j.
struct RowTarget {
  bf16* out;
  int64_t row_stride;
  bool is_cold;

  // Past the caches: whole lines only.
  bool streams(uint32_t mask) const { return is_cold && are_lines(out, row_stride) && mask == ~0u; }
};

// Stores rows [0, m) of 32 columns, those under the mask: line(j) is column j of all rows.
template <class Line>
MOE_INLINE void store_turned(const Line& line, int64_t m, uint32_t mask, const RowTarget& target) {
  alignas(64) float pairs[kTileSide * kTileSide], turned[kTileSide * kTileSide];
  const bool streams = target.streams(mask);
  for (int64_t i = 0; i < m; i += kTileSide) {
#pragma GCC unroll 4
    for (int64_t j = 0; j < kTileSide; ++j) {
      const __m512 first = _mm512_loadu_ps(line(2 * j) + i), second = _mm512_loadu_ps(line(2 * j + 1) + i);
      _mm512_store_si512(pairs + j * kTileSide, round_pairs(first, second));
    }
    transpose16(pairs, kTileSide, turned, kTileSide);
    const int64_t rows = smaller(kTileSide, m - i);
    bf16* out = target.out + i * target.row_stride;
    if (streams) {
      for (int64_t r = 0; r < rows; ++r, out += target.row_stride) {
        _mm512_stream_si512(reinterpret_cast<__m512i*>(out), _mm512_load_si512(turned + r * kTileSide));
      }
      continue;
    }
    for (int64_t r = 0; r < rows; ++r, out += target.row_stride) {
      _mm512_mask_storeu_epi16(out, mask, _mm512_load_si512(turned + r * kTileSide));
    }
  }
}

// Columns [col0, col0 + columns) of a group. gate and up hold 32 lines each of padded_m floats, ldc apart, and so does
// act, which is written.
struct TurnedGroup {
  float* gate;
  float* up;
  float* act;
  int64_t ldc, row0, m, col0, columns;

  int64_t padded_m() const { return (m + kTileSide - 1) / kTileSide * kTileSide; }
  uint32_t mask() const { return mask_of(columns); }
};

MOE_INLINE void add_bias(const EpilogueParams& p, const TurnedGroup& g, float* lines, int64_t first) {
  const bf16* bias = static_cast<const bf16*>(p.bias) + first * p.bias_stride;
  for (int64_t j = 0; j < g.columns; ++j) {
    const float value = to_acc(bias[j * p.gate_step * p.bias_stride]);
    for (int64_t i = 0; i < g.padded_m(); ++i) lines[j * g.ldc + i] += value;
  }
}

MOE_INLINE void scale_rows(const EpilogueParams& p, const TurnedGroup& g, float* lines) {
  const float* slot_weights = static_cast<const float*>(p.slot_weights);
  for (int64_t i = 0; i < g.m; i += kTileSide) {
    alignas(64) float weights[kTileSide] = {};
    for (int64_t r = 0; r < smaller(kTileSide, g.m - i); ++r) weights[r] = slot_weights[p.row_to_slot[g.row0 + i + r]];
    const __m512 weight = _mm512_load_ps(weights);
    for (int64_t j = 0; j < g.columns; ++j) {
      float* line = lines + j * g.ldc + i;
      _mm512_storeu_ps(line, _mm512_mul_ps(_mm512_loadu_ps(line), weight));
    }
  }
}

static inline void store_preact(const EpilogueParams& p, const TurnedGroup& g, bool gated) {
  bf16* out = static_cast<bf16*>(p.preact) + g.row0 * p.preact_stride + g.col0 * p.gate_step;
  if (gated && p.gate_step == 2) {
    for (int64_t half = 0; half < 2 && half * 16 < g.columns; ++half) {
      const auto alternating = [&](int64_t j) { return (j % 2 ? g.up : g.gate) + (half * 16 + j / 2) * g.ldc; };
      store_turned(alternating, g.m, mask_of(2 * (g.columns - half * 16)),
                   {out + half * 32, p.preact_stride, p.is_cold});
    }
    return;
  }
  store_turned([&](int64_t j) { return g.gate + j * g.ldc; }, g.m, g.mask(), {out, p.preact_stride, p.is_cold});
  if (gated) {
    store_turned([&](int64_t j) { return g.up + j * g.ldc; }, g.m, g.mask(),
                 {out + p.up_offset, p.preact_stride, p.is_cold});
  }
}

// MXFP8 wants the 32 values that share a scale side by side.
static inline void store_preact_mxfp8(const EpilogueParams& p, const TurnedGroup& g, bool gated) {
  alignas(64) float turned[kPanel * kTileSide];
  for (int64_t i = 0; i < g.m; i += kTileSide) {
    for (int64_t part = 0; part < (gated ? 2 : 1); ++part) {
      const float* lines = (part ? g.up : g.gate) + i;
      transpose16(lines, g.ldc, turned, kPanel);
      transpose16(lines + kTileSide * g.ldc, g.ldc, turned + kTileSide, kPanel);
      for (int64_t r = 0; r < smaller(kTileSide, g.m - i); ++r) {
        const Mxfp8Row row(p, gated, g.row0 + i + r);
        uint8_t* codes = row.codes + part * p.up_offset + g.col0 * p.gate_step;
        row.scales[part * p.mxfp8_scales + g.col0 / kMxfp8Columns] =
            encode_mxfp8(turned + r * kPanel, g.columns, codes, p.gate_step);
      }
    }
  }
}

template <Activation kKind>
static void activate_turned(const EpilogueParams& p, const TurnedGroup& g) {
  constexpr bool kGated = is_gated(kKind);
  if (p.weights_on_input) {
    scale_rows(p, g, g.gate);
    if (kGated) scale_rows(p, g, g.up);
  }
  if (p.bias) {
    add_bias(p, g, g.gate, g.col0 * p.gate_step);
    if (kGated) add_bias(p, g, g.up, p.up_offset + g.col0 * p.gate_step);
  }
  if (p.preact) {
    if (p.preact_is_mxfp8) {
      store_preact_mxfp8(p, g, kGated);
    } else {
      store_preact(p, g, kGated);
    }
  }
  if (!p.act) return;
  for (int64_t j = 0; j < g.columns; ++j) {
    const float *gate = g.gate + j * g.ldc, *up = g.up + j * g.ldc;
    float* act = g.act + j * g.ldc;
    const float alpha = static_cast<float>(p.activation.alpha), limit = static_cast<float>(p.activation.limit);
    Activate<kKind, bf16>::forward(gate, up, g.padded_m(), alpha, limit, act);
  }
  bf16* out = static_cast<bf16*>(p.act) + g.row0 * p.act_stride + g.col0;
  store_turned([&](int64_t j) { return g.act + j * g.ldc; }, g.m, g.mask(), {out, p.act_stride, p.is_cold});
}

static inline void store_turned_group(const EpilogueParams& p, const TurnedGroup& g) {
  if (p.bias) add_bias(p, g, g.gate, g.col0);
  bf16* out = static_cast<bf16*>(p.out) + g.row0 * p.out_row_stride + g.col0;
  store_turned([&](int64_t j) { return g.gate + j * g.ldc; }, g.m, g.mask(), {out, p.out_row_stride, p.is_cold});
}

static inline void store_turned_sums(const EpilogueParams& p, const TurnedGroup& g) {
  alignas(64) float turned[kTileSide * kTileSide];
  for (int64_t j = 0; j < g.columns; j += kTileSide) {
    const auto mask = static_cast<__mmask16>(g.mask() >> j);
    for (int64_t i = 0; i < g.m; i += kTileSide) {
      transpose16(g.gate + j * g.ldc + i, g.ldc, turned, kTileSide);
      float* out = static_cast<float*>(p.out) + (g.row0 + i) * p.out_row_stride + g.col0 + j;
      for (int64_t r = 0; r < smaller(kTileSide, g.m - i); ++r, out += p.out_row_stride) {
        _mm512_mask_storeu_ps(out, mask, _mm512_load_ps(turned + r * kTileSide));
      }
    }
  }
}

static inline void run_turned_epilogue(Epilogue kind, const EpilogueParams& p, const TurnedGroup& g) {
  if (kind == Epilogue::kStore) {
    store_turned_group(p, g);
  } else if (kind == Epilogue::kStoreSums) {
    store_turned_sums(p, g);
  } else {
    with_activation(p.activation.kind, [&]<Activation kKind>() { activate_turned<kKind>(p, g); });
  }
}

}  // namespace moe::cpu::MOE_ISA
