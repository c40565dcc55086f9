// What an ISA provides: one table of functions, filled in csrc/cpu/<isa>/kernels.cpp. Each works on a range of tokens,
// experts or on one block, on the calling thread; csrc/cpu/<op>/ cuts the work and calls them in parallel.
#pragma once

#include "cpu/gemm.h"
#include "cpu/soft/weights.h"
#include "moe/assign.h"
#include "moe/combine.h"
#include "moe/noise.h"
#include "moe/permute.h"
#include "moe/route.h"

namespace moe::cpu {

struct KernelTable {
  // Tokens [begin, end), which are added to the statistics. Returns the first bad token with NonFinite::kError, else
  // -1.
  int64_t (*route_forward)(const RouteParams&, int64_t begin, int64_t end);
  void (*route_backward)(const RouteBackwardParams&, int64_t begin, int64_t end);
  // Tokens [begin, end).
  void (*combine_forward)(const CombineParams&, int64_t begin, int64_t end);
  void (*combine_backward)(const CombineBackwardParams&, int64_t begin, int64_t end);
  // Columns [begin, end) of one expert's sum.
  void (*segment_sum)(const SegmentSumParams&, int64_t expert, int64_t begin, int64_t end);
  // *out (float; double for float64) = the dot product of two strided vectors of `size` elements.
  void (*dot)(DType, const void* a, int64_t a_stride, const void* b, int64_t b_stride, int64_t size, void* out);
  // Blocks [begin, end) of kNoiseBlock numbers.
  void (*noise)(const NoiseParams&, int64_t begin, int64_t end);
  // The passes of sinkhorn over tokens [begin, end), in params.dtype: balanced = exp(logits - row maximum), which
  // returns how many rows have anything in them; sums [E] = those of the columns of diag(u) balanced, u = 1 / (balanced
  // v); balanced = diag(u) balanced diag(v).
  int64_t (*sinkhorn_exponentiate)(const SinkhornParams&, int64_t begin, int64_t end);
  void (*sinkhorn_add_columns)(const SinkhornParams&, int64_t begin, int64_t end, const void* v, void* sums);
  void (*sinkhorn_scale)(const SinkhornParams&, int64_t begin, int64_t end, const void* v);
  // Statistics and weights of a block of results with all their values.
  void (*soft_forward)(const SoftMixParams&, const SoftWeights&);
  // Weights of any block, and the gradient of its logits, from the statistics.
  void (*soft_weights)(const SoftMixParams&, const SoftWeights&);
  // out[n] (float; double for float64) = <grad_mixed, mixed> of results [begin, end), counted through all sequences.
  void (*soft_deltas)(const SoftMixBackwardParams&, int64_t begin, int64_t end, void* out);
  // One block of a matrix product, indexed by DType.
  GemmKernel gemm[4];
};

const KernelTable& portable_kernels();
const KernelTable& avx2_kernels();
const KernelTable& avx512_kernels();
const KernelTable& avx512bf16_kernels();
const KernelTable& amx_kernels();

}  // namespace moe::cpu
