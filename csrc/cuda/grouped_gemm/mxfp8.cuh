// Pre-activations as MXFP8: e4m3 values with one e8m0 scale for 32 columns. Format: moe/fused_experts.h.
//
// Plain arithmetic on bits, so that it serves every architecture; kLanes neighbouring lanes hold the 32 columns.
#pragma once

#include "cuda/grouped_gemm/slice.cuh"

namespace moe::cuda {

constexpr int kMxfp8Columns = 32;

// The byte of 2^(floor(log2(largest)) - 8).
__device__ inline uint32_t scale_of(uint32_t largest_bits) {
  const uint32_t exponent = largest_bits >> 23;
  return largest_bits == 0 ? 127 : exponent < 8 ? 0 : exponent - 8;
}

__device__ inline float inverse_of(uint32_t scale) { return __uint_as_float((254 - scale) << 23); }
__device__ inline float value_of(uint32_t scale) { return __uint_as_float(scale == 0 ? 1u << 22 : scale << 23); }

// Nearest even, saturating at 448. Infinities become NaN.
__device__ inline uint32_t to_e4m3(float x) {
  const uint32_t bits = __float_as_uint(x), magnitude = bits & 0x7fffffff;
  const uint32_t normal = (magnitude + 0x7ffff + (magnitude >> 20 & 1)) >> 20;
  // Adding 2^14 puts the last bit of an e4m3 subnormal, 2^-9, at the last bit of the float: the addition rounds.
  const uint32_t subnormal = __float_as_uint(__uint_as_float(magnitude) + 16384.0f) - __float_as_uint(16384.0f);
  uint32_t code = magnitude < (121u << 23) ? subnormal : min(normal - (120u << 3), 0x7eu);
  code = magnitude >= 0x7f800000 ? 0x7f : code;
  return code | (bits >> 24 & 0x80);
}

__device__ inline float from_e4m3(uint32_t code) {
  const uint32_t magnitude = code & 0x7f;
  // As a float the exponent is 120 too small; the product also makes subnormals right.
  const float value = __uint_as_float(magnitude == 0x7f ? 0x7fffffff : magnitude << 20) * 0x1p120f;
  return __uint_as_float(__float_as_uint(value) | (code & 0x80) << 24);
}

// Where a run's codes and scales stand.
struct Mxfp8Run {
  uint8_t *codes, *scales;  // of the gate; the row's other scales come after
  int64_t row_bytes;
  int blocks;

  template <class R>
  __device__ Mxfp8Run(void* data, int64_t row, const RowLayout& layout, const R& run)
      : blocks((run.outputs + kMxfp8Columns - 1) / kMxfp8Columns) {
    const int64_t width = layout.parts() * int64_t{run.outputs};
    row_bytes = width + layout.parts() * blocks;
    uint8_t* begin = static_cast<uint8_t*>(data) + row * row_bytes;
    codes = begin + layout.step * run.column;
    scales = begin + width + run.column / kMxfp8Columns;
  }
  __device__ void advance(int rows) {
    codes += rows * row_bytes;
    scales += rows * row_bytes;
  }
  __device__ uint32_t scale(int part) const { return scales[part * blocks]; }

  // Called by whole warps; only lanes that are `inside` store.
  template <class R, class Acc, int N>
  __device__ void encode(const RowLayout& layout, const R& run, const Acc (&z)[2][N], bool inside) const {
    uint8_t encoded[2][N] = {};
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      if (part == 1 && !layout.gated()) break;
      uint32_t largest = 0;
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const uint32_t magnitude = __float_as_uint(static_cast<float>(z[part][i])) & 0x7fffffff;
        if (run.has(i) && magnitude < 0x7f800000) largest = max(largest, magnitude);
      }
#pragma unroll
      for (int lane = 1; lane < R::kLanes; lane *= 2) {
        largest = max(largest, __shfl_xor_sync(0xffffffff, largest, lane));
      }
      const uint32_t scale = scale_of(largest);
      const float inverse = inverse_of(scale);
#pragma unroll
      for (int i = 0; i < N; ++i) encoded[part][i] = to_e4m3(static_cast<float>(z[part][i]) * inverse);
      if (inside && run.column % kMxfp8Columns == 0) scales[part * blocks] = scale;
    }
    if (inside) store_parts(codes, layout, run, encoded[0], encoded[1]);
  }
};

}  // namespace moe::cuda
