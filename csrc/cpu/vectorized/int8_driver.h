// What an Int8Job does, the same for every engine: pack the job's rows, multiply them group by group of the weight's
// channels, finish each group.
//
// The weight is read where it lies: its rows are contiguous along k, which is all that an engine asks of its large
// operand. Rows of activations are the small one and are packed as the engine likes.
#pragma once

#include "cpu/vectorized/int8_epilogue.h"
#include "cpu/vectorized/int8_quantize.h"

namespace moe::cpu::MOE_ISA {

static constexpr int64_t int8_round_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// Groups that an engine is given at once, at most.
static constexpr int64_t kInt8MostGroups = 4;

// A group of weight channels. Where the next group lies is only a hint.
struct Int8Panels {
  const int8_t* panel[2];  // first channel of each
  int64_t channels[2];     // at most kInt8Panel; the second panel may be empty
  int64_t stride;          // from channel to channel
  const int8_t* next[2];
};

struct Int8Scratch {
  int64_t packed_bytes, sums_ld, sums_bytes, scales_bytes, engine_bytes;

  template <class Engine>
  static Int8Scratch of(int64_t rows, int64_t k) {
    Int8Scratch s;
    const int64_t padded_rows = int8_round_up(rows, kInt8Panel);
    const int64_t padded_k = int8_round_up(k, kInt8RowMultiple);
    s.packed_bytes = int8_round_up(Engine::packed_bytes(padded_rows, padded_k), 64);
    // Never a power of two: the rows of a tile would share few sets of the L1 cache.
    s.sums_ld = padded_rows + kInt8Panel;
    s.sums_bytes = Engine::groups_at_once(rows) * kInt8Group * s.sums_ld * static_cast<int64_t>(sizeof(int32_t));
    s.scales_bytes = padded_rows * static_cast<int64_t>(sizeof(float));
    s.engine_bytes = Engine::scratch_bytes(rows, padded_k);
    return s;
  }
  int64_t total() const { return packed_bytes + sums_bytes + int8_round_up(scales_bytes, 64) + engine_bytes; }
};

template <class Engine>
static int64_t int8_scratch_bytes(int64_t rows, int64_t k) {
  return Int8Scratch::of<Engine>(rows, k).total();
}

static inline Int8Panels int8_panels(const Int8Product& p, const Int8Job& job, int64_t column, int64_t halves) {
  Int8Panels panels;
  const int8_t* weight = p.weight.data + job.expert * p.weight.expert_stride;
  const int64_t left = job.col0 + job.columns - column;
  const int64_t second = left > kInt8Panel ? left - kInt8Panel : 0;
  panels.stride = p.gate_step * p.weight.n_stride;
  panels.panel[0] = weight + int8_channel(p, 0, column) * p.weight.n_stride;
  panels.channels[0] = left < kInt8Panel ? left : kInt8Panel;
  panels.panel[1] = halves == 2 ? weight + int8_channel(p, 1, column) * p.weight.n_stride
                                : panels.panel[0] + (second ? kInt8Panel * panels.stride : 0);
  panels.channels[1] = halves == 2 ? panels.channels[0] : second < kInt8Panel ? second : kInt8Panel;
  return panels;
}

template <class Engine>
static void run_int8(const Int8Product& p, const Int8Job& job, const Int8Job* next, void* scratch) {
  const Int8Scratch layout = Int8Scratch::of<Engine>(job.rows, p.k);
  char* at = static_cast<char*>(scratch);
  auto* packed = reinterpret_cast<typename Engine::Packed*>(at);
  auto* sums = reinterpret_cast<int32_t*>(at += layout.packed_bytes);
  auto* scales = reinterpret_cast<float*>(at += layout.sums_bytes);
  void* own = at + int8_round_up(layout.scales_bytes, 64);

  Engine::begin();
  for (int64_t i = 0; i < job.rows; i += kInt8Panel) {
    const int8_t* rows[kInt8Panel];
    const int64_t count = job.rows - i < kInt8Panel ? job.rows - i : kInt8Panel;
    for (int64_t r = 0; r < count; ++r) {
      int64_t row = job.row0 + i + r;
      float weight = 1.0f;
      if (p.row_to_slot) {
        const int32_t slot = p.row_to_slot[row];
        if (p.slot_weights) weight = p.slot_weights[slot];
        row = slot / p.slots_per_row;
      }
      rows[r] = p.rows + row * p.row_stride;
      scales[i + r] = p.row_scales[row] * weight;
    }
    Engine::pack(rows, i, count, job.rows, p.row_stride, packed);
  }

  const int64_t halves = p.activates && is_gated(p.activation.kind) ? 2 : 1;
  const int64_t step = kInt8Group / halves, end = job.col0 + job.columns, most = Engine::groups_at_once(job.rows);
  for (int64_t column = job.col0; column < end; column += most * step) {
    Int8Panels groups[kInt8MostGroups];
    int64_t count = 0;
    for (int64_t at = column; at < end && count < most; at += step, ++count) {
      groups[count] = int8_panels(p, job, at, halves);
      // Fetched meanwhile: the groups that follow here, or in the next job.
      const int64_t later = at + most * step, first = next ? next->col0 + count * step : end;
      Int8Panels after = groups[count];
      if (later < end) {
        after = int8_panels(p, job, later, halves);
      } else if (next && first < next->col0 + next->columns) {
        after = int8_panels(p, *next, first, halves);
      }
      groups[count].next[0] = after.panel[0];
      groups[count].next[1] = after.panel[1];
    }
    Engine::multiply(packed, job.rows, groups, count, p.k, sums, layout.sums_ld, own);
    for (int64_t g = 0; g < count; ++g) {
      const int64_t at = column + g * step, columns = end - at < step ? end - at : step;
      finish_int8_group(p, job, at,
                        {sums + g * kInt8Group * layout.sums_ld, layout.sums_ld, scales, job.rows, columns});
    }
  }
  Engine::end();
}

template <class Engine>
static constexpr Int8Kernels int8_table() {
  return {quantize_rows, run_int8<Engine>, int8_scratch_bytes<Engine>};
}

}  // namespace moe::cpu::MOE_ISA
