// From exact sums of int8 products to what is stored: scales, bias, activation. One group of weight channels times all
// rows of a job at a time.
#pragma once

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

// z = (float(sum) * row scale) * channel scale + bias, for a whole group whatever is used of it.
static inline void int8_dequantize(const int32_t* __restrict sums, float row_scale, const Int8Channels& channels,
                                   float* __restrict z) {
  for (int64_t j = 0; j < kInt8Group; ++j) z[j] = static_cast<float>(sums[j]) * row_scale * channels.scale[j];
  if (channels.has_bias) {
    for (int64_t j = 0; j < kInt8Group; ++j) z[j] += channels.bias[j];
  }
}

// store(row, z) for every row of the block.
template <class Store>
static inline void for_each_int8_row(const Int8Block& block, const Int8Channels& channels, const Store& store) {
  alignas(64) int32_t turned[kInt8Panel * kInt8Group];
  alignas(64) float z[kInt8Group];
  for (int64_t i = 0; i < block.rows; i += kInt8Panel) {
    for (int64_t panel = 0; panel < 2; ++panel) {
      transpose16(reinterpret_cast<const float*>(block.sums + panel * kInt8Panel * block.ld + i), block.ld,
                  reinterpret_cast<float*>(turned + panel * kInt8Panel), kInt8Group);
    }
    const int64_t rows = block.rows - i < kInt8Panel ? block.rows - i : kInt8Panel;
    for (int64_t r = 0; r < rows; ++r) {
      int8_dequantize(turned + r * kInt8Group, block.row_scales[i + r], channels, z);
      store(i + r, z);
    }
  }
}

template <class T>
static void finish_int8_group(const Int8Product& p, const Int8Job& job, int64_t col0, const Int8Block& block) {
  const int64_t halves = p.activates && is_gated(p.activation.kind) ? 2 : 1;
  Int8Channels channels;
  load_channels<T>(p, job.expert, col0, block.columns, halves, channels);
  if (!p.activates) {
    T* out = static_cast<T*>(p.out) + job.row0 * p.out_stride + col0;
    for_each_int8_row(block, channels, [&](int64_t row, const float* __restrict z) {
      T* __restrict target = out + row * p.out_stride;
      if (block.columns == kInt8Group) {
        for (int64_t j = 0; j < kInt8Group; ++j) target[j] = from_acc<T>(z[j]);
      } else {
        for (int64_t j = 0; j < block.columns; ++j) target[j] = from_acc<T>(z[j]);
      }
    });
    return;
  }
  float* out = static_cast<float*>(p.out) + job.row0 * p.out_stride + col0;
  const float alpha = static_cast<float>(p.activation.alpha), limit = static_cast<float>(p.activation.limit);
  with_activation(p.activation.kind, [&]<Activation kKind>() {
    for_each_int8_row(block, channels, [&](int64_t row, const float* z) {
      alignas(64) float act[kInt8Group];
      constexpr int64_t kColumns = is_gated(kKind) ? kInt8Panel : kInt8Group;
      activate_as<kKind>(z, z + kInt8Panel, kColumns, alpha, limit, act);
      float* __restrict target = out + row * p.out_stride;
      if (block.columns == kColumns) {
        for (int64_t j = 0; j < kColumns; ++j) target[j] = act[j];
      } else {
        for (int64_t j = 0; j < block.columns; ++j) target[j] = act[j];
      }
    });
  });
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
