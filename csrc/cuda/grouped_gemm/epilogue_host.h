// What launchers of every engine do to an epilogue before it goes to the device.
#pragma once

#include <cstdint>

#include "cuda/grouped_gemm/columns.h"
#include "cuda/grouped_gemm/product.h"

namespace moe::cuda {

// A thread of an epilogue has runs of 16 bytes of sums: 4 columns, 2 of float64.
inline int64_t run_of(DType dtype) { return dtype == DType::kFloat64 ? 2 : 4; }

inline bool is_multiple(const void* address, int64_t bytes) {
  return reinterpret_cast<uintptr_t>(address) % bytes == 0;
}

// Sets `vector`: runs may move as vectors. Null pointers don't stand in the way.
inline StoreEpilogue prepare(StoreEpilogue epilogue, const RowsProduct& product) {
  const int64_t run = run_of(product.dtype);
  epilogue.vector =
      product.n % run == 0 && epilogue.out_stride % run == 0 && is_multiple(epilogue.out, run * size_of(product.dtype));
  return epilogue;
}

// `outputs` are the columns of the activation; pairs of interleaved ones make vectors of up to 16 bytes.
inline bool activation_vectors(DType dtype, const ActivationRule& rule, bool interleaved, PreactFormat format,
                               int64_t outputs, const void* preact, const void* act, const void* grad_preact) {
  const int64_t run = run_of(dtype), parts = is_gated(rule.kind) ? 2 : 1,
                width = is_gated(rule.kind) && interleaved ? 2 : 1;
  const int64_t bytes = run * size_of(dtype), pair_bytes = width * bytes < 16 ? width * bytes : 16;
  bool vector = outputs % run == 0 && is_multiple(act, bytes) && is_multiple(grad_preact, pair_bytes);
  if (format == PreactFormat::kMxfp8) {
    const int64_t row_bytes = parts * (outputs + (outputs + 31) / 32);
    vector = vector && row_bytes % (run * width) == 0 && is_multiple(preact, run * width);
  } else {
    vector = vector && is_multiple(preact, pair_bytes);
  }
  return vector;
}

inline ActivateEpilogue prepare(ActivateEpilogue epilogue, const RowsProduct& product) {
  const int64_t outputs = is_gated(epilogue.rule.kind) ? product.n / 2 : product.n;
  epilogue.vector = activation_vectors(product.dtype, epilogue.rule, epilogue.interleaved, epilogue.preact_format,
                                       outputs, epilogue.preact, epilogue.act, nullptr);
  return epilogue;
}

inline ActivateBackwardEpilogue prepare(ActivateBackwardEpilogue epilogue, const RowsProduct& product) {
  epilogue.vector = activation_vectors(product.dtype, epilogue.rule, epilogue.interleaved, epilogue.preact_format,
                                       product.n, epilogue.preact, epilogue.act_scaled, epilogue.grad_preact);
  return epilogue;
}

// The order of a product's columns.
inline ColumnOrder column_order(const StoreEpilogue&) { return ColumnOrder::kPlain; }
inline ColumnOrder column_order(const ActivateBackwardEpilogue&) { return ColumnOrder::kPlain; }
inline ColumnOrder column_order(const ActivateEpilogue& epilogue) {
  if (!is_gated(epilogue.rule.kind)) return ColumnOrder::kPlain;
  return epilogue.interleaved ? ColumnOrder::kInterleaved : ColumnOrder::kSplit;
}

}  // namespace moe::cuda
