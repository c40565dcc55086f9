// Epilogues of a product whose rows are the result's rows, for the cases that most time is spent in; the rest goes to
// vectorized/epilogue.h.
#pragma once

#include "cpu/amx/turned_epilogue.h"

namespace moe::cpu::MOE_ISA {

MOE_INLINE __m512i round_line(const float* from) {
  return (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(from + kTileSide), _mm512_loadu_ps(from));
}

// streams: past the caches, a whole line.
MOE_INLINE void store_line(__m512i line, uint32_t mask, bf16* to, bool streams) {
  if (streams) {
    _mm512_stream_si512(reinterpret_cast<__m512i*>(to), line);
  } else {
    _mm512_mask_storeu_epi16(to, mask, line);
  }
}

// 32 columns of bfloat16 as floats.
struct WideLine {
  __m512 low, high;

  __attribute__((always_inline)) static WideLine load(uint32_t mask, const bf16* from) {
    const __m512i line = _mm512_maskz_loadu_epi16(mask, from);
    return {widen(_mm512_castsi512_si256(line)), widen(_mm512_extracti64x4_epi64(line, 1))};
  }
  __attribute__((always_inline)) static __m512 widen(__m256i halves) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
  }
  __attribute__((always_inline)) void store(uint32_t mask, bf16* to, bool streams) const {
    store_line((__m512i)_mm512_cvtne2ps_pbh(high, low), mask, to, streams);
  }
};

static inline void store_straight(const EpilogueParams& p, const EpilogueBlock<float>& block) {
  for (int64_t j = 0; j < block.columns; j += kPanel) {
    const uint32_t mask = mask_of(block.columns - j);
    bf16* out = static_cast<bf16*>(p.out) + block.row0 * p.out_row_stride + block.col0 + j;
    const bool streams = p.is_cold && mask == ~0u && are_lines(out, p.out_row_stride);
    for (int64_t i = 0; i < block.rows; ++i, out += p.out_row_stride) {
      store_line(round_line(block.gate + i * block.ld + j), mask, out, streams);
    }
  }
}

// activation_backward_block() of vectorized/epilogue.h for swiglu, gate before up, the weight on the output.
static inline void swiglu_backward_straight(const EpilogueParams& p, const EpilogueBlock<float>& block) {
  constexpr int64_t kRowsAhead = 8;
  const uint32_t mask = mask_of(block.columns);
  const bool cold_lines = p.is_cold && mask == ~0u && block.col0 % kPanel == 0;
  const auto streams = [&](const void* to, int64_t stride) {
    return cold_lines && are_lines(static_cast<const bf16*>(to), stride);
  };
  const bool streams_act = streams(p.act, p.act_stride), streams_gate = streams(p.grad_preact, p.preact_stride);
  const bool streams_up = streams_gate && p.up_offset % kPanel == 0;
  for (int64_t i = 0; i < block.rows; ++i) {
    const int64_t row = block.row0 + i, at = row * p.preact_stride + block.col0;
    const float weight = static_cast<const float*>(p.slot_weights)[p.row_to_slot[row]];
    const __m512 weights = _mm512_set1_ps(weight);
    const bf16* preact = static_cast<const bf16*>(p.preact) + at;
    // A line of each row, from memory: nothing else foresees that. Behind the last row it fetches for nothing.
    _mm_prefetch(preact + kRowsAhead * p.preact_stride, _MM_HINT_T0);
    _mm_prefetch(preact + kRowsAhead * p.preact_stride + p.up_offset, _MM_HINT_T0);
    const WideLine gate = WideLine::load(mask, preact), up = WideLine::load(mask, preact + p.up_offset);
    const float* c = block.gate + i * block.ld;
    const __m512 c_low = _mm512_maskz_loadu_ps(static_cast<__mmask16>(mask), c);
    const __m512 c_high = _mm512_maskz_loadu_ps(static_cast<__mmask16>(mask >> 16), c + kTileSide);
    const SwigluGradient low(gate.low, up.low, _mm512_mul_ps(c_low, weights));
    const SwigluGradient high(gate.high, up.high, _mm512_mul_ps(c_high, weights));
    if (p.weight_grad_partials) {
      const __m512 products = _mm512_add_ps(_mm512_mul_ps(c_low, low.act), _mm512_mul_ps(c_high, high.act));
      float* partials = static_cast<float*>(p.weight_grad_partials) + row * p.partials_stride;
      partials[block.col0 / kPanel] = _mm512_reduce_add_ps(products);
    }
    if (p.act) {
      const WideLine act = {_mm512_mul_ps(low.act, weights), _mm512_mul_ps(high.act, weights)};
      act.store(mask, static_cast<bf16*>(p.act) + row * p.act_stride + block.col0, streams_act);
    }
    bf16* target = static_cast<bf16*>(p.grad_preact) + at;
    WideLine{low.grad_gate, high.grad_gate}.store(mask, target, streams_gate);
    WideLine{low.grad_up, high.grad_up}.store(mask, target + p.up_offset, streams_up);
  }
}

template <>
struct EpilogueOf<bf16, float> {
  static void run(Epilogue kind, const EpilogueParams& p, const EpilogueBlock<float>& block, int64_t column_block) {
    const bool unit = p.out_col_stride == 1;
    if (kind == Epilogue::kStore && !p.bias && unit) {
      store_straight(p, block);
    } else if (kind == Epilogue::kActivationBackward && p.activation.kind == Activation::kSwiglu && p.gate_step == 1 &&
               !p.preact_is_mxfp8 && !p.weights_on_input && !p.grad_preact_scaled) {
      swiglu_backward_straight(p, block);
    } else {
      run_any_epilogue<bf16>(kind, p, block, column_block);
    }
  }
};

}  // namespace moe::cpu::MOE_ISA
