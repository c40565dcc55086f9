// The two products of soft_mix as their kernels see them, and the small passes beside them. Plain structs: kernel
// parameters as they are. The engines differ in how they multiply: simt takes any dtype, stride and size, mma 16-bit
// data in whole chunks of 16 bytes.
#pragma once

#include "cuda/common/fast_divide.h"
#include "cuda/device.h"
#include "cuda/launch.h"
#include "moe/soft.h"

namespace moe::cuda {

// [B, rows, D] with unit stride over D.
struct SoftRows {
  const void* data;
  int64_t batch_stride, stride;  // elements
};

// out[b, i] = sum over j of w(i, j) right[b, j]. w of a slot and a token: see moe/soft.h.
struct SoftProduct {
  SoftMixParams mix;
  bool tokens_inner;  // i is a slot and j a token; else the other way round
  SoftRows right;     // [B, J, D]
  void* out;          // [B, I, D] contiguous

  int64_t rows() const { return tokens_inner ? mix.num_slots : mix.num_tokens; }  // I
};

// grad_logits[b, t, s] = w (<tokens[b, t], slots[b, s]> - dots[b, r]), r being the slot (dispatch) or the token.
struct SoftLogits {
  SoftMixParams mix;
  SoftRows tokens, slots;  // [B, m, D], [B, s, D]
  const void* dots;        // [B, R], float (double for double data)
  void* grad_logits;       // [B, m, s] contiguous
};

// Whether four neighbouring slots' logits, and what else there is of slots, are one aligned piece of memory in all
// rows. Not float64: four would be two pieces, each with gaps between the lanes.
inline bool in_quads(const void* logits, DType dtype, int64_t num_slots, int64_t batch_stride, int64_t stride) {
  return dtype != DType::kFloat64 && num_slots % 4 == 0 && batch_stride % 4 == 0 && stride % 4 == 0 &&
         reinterpret_cast<uintptr_t>(logits) % (4 * size_of(dtype)) == 0;
}
inline bool logits_in_quads(const SoftMixParams& p) {
  return in_quads(p.logits, p.logits_dtype, p.num_slots, p.logits_batch_stride, p.logits_stride) &&
         (!p.dispatch || reinterpret_cast<uintptr_t>(p.statistics) % 16 == 0);
}
inline bool logits_in_quads(const SoftLogits& g) {
  const SoftMixParams& p = g.mix;
  return logits_in_quads(p) &&
         in_quads(g.grad_logits, p.logits_dtype, p.num_slots, p.num_tokens * p.num_slots, p.num_slots);
}

// Whether rows of D elements are pieces of `bytes`.
inline bool in_pieces(const SoftRows& rows, DType dtype, int64_t width, int64_t bytes) {
  const int64_t count = bytes / size_of(dtype);
  return width % count == 0 && rows.batch_stride % count == 0 && rows.stride % count == 0 &&
         reinterpret_cast<uintptr_t>(rows.data) % static_cast<uintptr_t>(bytes) == 0;
}

// How many blocks a multiprocessor gets at the most.
inline int64_t blocks_each(int64_t blocks, const Device& device) {
  return (blocks + device.multiprocessors - 1) / device.multiprocessors;
}

// statistics of moe/soft.h.
Outcome soft_statistics(const SoftMixParams& params, Stream stream);
// dots[b, r] = <grad_mixed[b, r], mixed[b, r]>, in float (double).
Outcome soft_dots(const SoftMixBackwardParams& params, void* dots, Stream stream);

namespace simt {
Outcome soft_product(const SoftProduct& product, Stream stream);
Outcome soft_logits(const SoftLogits& logits, Stream stream);
}  // namespace simt

// 16-bit data alone.
namespace mma {
// Whether rows are in pieces of 16 bytes.
bool fits(const SoftMixParams& params, const SoftRows& left, const SoftRows& right);
Outcome soft_product_bfloat16(const SoftProduct& product, const Device& device, Stream stream);
Outcome soft_product_float16(const SoftProduct& product, const Device& device, Stream stream);
Outcome soft_logits(const SoftLogits& logits, const Device& device, Stream stream);
}  // namespace mma

}  // namespace moe::cuda
