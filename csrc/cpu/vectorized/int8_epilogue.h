// From exact sums of int8 products to what is stored: scales, bias, activation. One group of weight channels times all
// rows of a job at a time.
#pragma once

#include <cstring>

#include "cpu/int8_kernels.h"
#include "cpu/vectorized/activation.h"

namespace moe::cpu::MOE_ISA {

// Weight channels that an engine multiplies at once: two panels of sixteen, gate and up where there are both.
static constexpr int64_t kInt8Panel = 16;
static constexpr int64_t kInt8Group = 2 * kInt8Panel;

// sums[channel * ld + row]: the transpose of the result.
struct Int8Block {
  const int32_t* sums;
  int64_t ld;
  const float* row_scales;  // of the job's rows
  int64_t rows;
  int64_t columns;  // of the output, at most kInt8Group, with gate and up kInt8Panel
};

// Scales and bias of a group's channels, panel after panel.
struct Int8Channels {
  alignas(64) float scale[kInt8Group];
  alignas(64) float bias[kInt8Group];
  bool has_bias;
};

static inline int64_t int8_channel(const Int8Product& p, int64_t half, int64_t column) {
  return half * p.up_offset + column * p.gate_step;
}

template <class T>
static void load_channels(const Int8Product& p, int64_t expert, int64_t col0, int64_t columns, int64_t halves,
                          Int8Channels& channels) {
  const float* scales = p.weight.scales + expert * p.scales_expert_stride;
  const T* bias = static_cast<const T*>(p.bias.data);
  channels.has_bias = bias != nullptr;
  for (int64_t i = 0; i < kInt8Group; ++i) channels.scale[i] = channels.bias[i] = 0.0f;
  for (int64_t half = 0; half < halves; ++half) {
    for (int64_t j = 0; j < columns; ++j) {
      const int64_t channel = int8_channel(p, half, col0 + j), at = half * kInt8Panel + j;
      channels.scale[at] = scales[channel];
      if (bias) channels.bias[at] = to_acc(bias[expert * p.bias.expert_stride + channel * p.bias.stride]);
    }
  }
}

// Sixteen rows of a block, without scale and bias: [row][channel].
struct Int8Rows {
  alignas(64) int32_t sums[kInt8Panel * kInt8Group];

  void take(const Int8Block& block, int64_t row) {
    for (int64_t panel = 0; panel < 2; ++panel) {
      transpose16(reinterpret_cast<const float*>(block.sums + panel * kInt8Panel * block.ld + row), block.ld,
                  reinterpret_cast<float*>(sums + panel * kInt8Panel), kInt8Group);
    }
  }

  // z = (float(sum) * row scale) * channel scale + bias of one row and the channels of one panel.
  void dequantize(int64_t row, float row_scale, const Int8Channels& channels, int64_t panel, float* z) const {
    // Written with vectors: a loop over sixteen is unrolled before it could be vectorised.
    typedef int32_t Ints __attribute__((vector_size(4 * kInt8Panel)));
    typedef float Floats __attribute__((vector_size(4 * kInt8Panel)));
    Ints sum;
    Floats scale, bias;
    memcpy(&sum, sums + row * kInt8Group + panel * kInt8Panel, sizeof(sum));
    memcpy(&scale, channels.scale + panel * kInt8Panel, sizeof(scale));
    memcpy(&bias, channels.bias + panel * kInt8Panel, sizeof(bias));
    Floats value = __builtin_convertvector(sum, Floats) * row_scale * scale;
    if (channels.has_bias) value += bias;
    memcpy(z, &value, sizeof(value));
  }
};

// Some rows of a panel, which have their scales and bias, to memory.
template <class T>
static inline void store_int8_panel(const float* __restrict z, int64_t rows, int64_t columns, T* target,
                                    int64_t stride) {
  T converted[kInt8Panel * kInt8Panel];
  for (int64_t i = 0; i < rows * kInt8Panel; ++i) converted[i] = from_acc<T>(z[i]);
  if (columns == kInt8Panel) {
    for (int64_t r = 0; r < rows; ++r) memcpy(target + r * stride, converted + r * kInt8Panel, kInt8Panel * sizeof(T));
  } else {
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t j = 0; j < columns; ++j) target[r * stride + j] = converted[r * kInt8Panel + j];
    }
  }
}

// Columns of a panel that exist.
static inline int64_t int8_panel_columns(const Int8Block& block, int64_t panel) {
  const int64_t left = block.columns - panel * kInt8Panel;
  return left < 0 ? 0 : left < kInt8Panel ? left : kInt8Panel;
}

template <class T>
static void finish_int8_group(const Int8Product& p, const Int8Job& job, int64_t col0, const Int8Block& block) {
  const bool gated = p.activates && is_gated(p.activation.kind);
  Int8Channels channels;
  load_channels<T>(p, job.expert, col0, block.columns, gated ? 2 : 1, channels);
  const float alpha = static_cast<float>(p.activation.alpha), limit = static_cast<float>(p.activation.limit);
  Int8Rows turned;
  alignas(64) float z[2][kInt8Panel * kInt8Panel], act[kInt8Panel * kInt8Panel];
  for (int64_t i = 0; i < block.rows; i += kInt8Panel) {
    const int64_t rows = block.rows - i < kInt8Panel ? block.rows - i : kInt8Panel;
    turned.take(block, i);
    for (int64_t panel = 0; panel < 2; ++panel) {
      for (int64_t r = 0; r < rows; ++r) {
        turned.dequantize(r, block.row_scales[i + r], channels, panel, z[panel] + r * kInt8Panel);
      }
    }
    const int64_t at = (job.row0 + i) * p.out_stride + col0;
    if (!p.activates) {
      for (int64_t panel = 0; panel < 2; ++panel) {
        store_int8_panel(z[panel], rows, int8_panel_columns(block, panel),
                         static_cast<T*>(p.out) + at + panel * kInt8Panel, p.out_stride);
      }
      continue;
    }
    for (int64_t panel = 0; panel < (gated ? 1 : 2); ++panel) {
      with_activation(p.activation.kind, [&]<Activation kKind>() {
        activate_as<kKind>(z[panel], z[1], rows * kInt8Panel, alpha, limit, act);
      });
      store_int8_panel(act, rows, int8_panel_columns(block, panel),
                       static_cast<float*>(p.out) + at + panel * kInt8Panel, p.out_stride);
    }
  }
}

static void finish_int8_group(const Int8Product& p, const Int8Job& job, int64_t col0, const Int8Block& block) {
  switch (p.dtype) {
    case DType::kFloat32:
      return finish_int8_group<float>(p, job, col0, block);
    case DType::kBFloat16:
      return finish_int8_group<bf16>(p, job, col0, block);
    case DType::kFloat16:
      return finish_int8_group<fp16>(p, job, col0, block);
    case DType::kFloat64:  // refused before any kernel is called
      return;
  }
}

}  // namespace moe::cpu::MOE_ISA
