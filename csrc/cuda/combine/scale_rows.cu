// scale_rows: every sorted row times its slot's weight, in place. Contract: cuda/combine/combine.h.
#include "cuda/combine/combine.h"
#include "cuda/combine/row_types.cuh"
#include "cuda/common/launch_kernel.cuh"

namespace moe::cuda {

namespace {

constexpr int kVectorsPerThread = 4;

template <class T, int kWidth>
__global__ void __launch_bounds__(kRowGridThreads) scale_rows_kernel(ScaleRowsParams p, int row_threads_log2) {
  using A = acc_t<T>;
  const RowPlace place(row_threads_log2, kVectorsPerThread);
  if (place.row >= p.num_rows) return;
  const int32_t slot = p.row_to_slot[place.row];
  if (place.row >= p.expert_offsets[p.num_experts] || slot < 0 || slot >= p.num_slots) return;
  const A weight = static_cast<const A*>(p.topk_weights)[slot];
  T* row = static_cast<T*>(p.rows) + place.row * p.width;
  const int64_t row_vectors = p.width / kWidth;
  for (int64_t first = place.first; first < row_vectors; first += place.stride) {
    Vector<T, kWidth> vectors[kVectorsPerThread];
#pragma unroll
    for (int i = 0; i < kVectorsPerThread; ++i) {
      const int64_t vector = first + i * place.next;
      if (vector < row_vectors) vectors[i] = load<kWidth>(row + vector * kWidth);
    }
#pragma unroll
    for (int i = 0; i < kVectorsPerThread; ++i) {
      const int64_t vector = first + i * place.next;
      if (vector >= row_vectors) continue;
      A values[kWidth];
      to_acc(vectors[i], values);
#pragma unroll
      for (int j = 0; j < kWidth; ++j) values[j] *= weight;
      store_whole(row + vector * kWidth, from_acc<T, kWidth>(values));
    }
  }
}

template <class T, int kWidth>
Outcome scale(const ScaleRowsParams& p, Stream stream) {
  const RowGrid grid = row_grid(p.num_rows, p.width / kWidth, kVectorsPerThread);
  return launch("scale_rows", scale_rows_kernel<T, kWidth>, grid.blocks, kRowGridThreads, 0, stream, p,
                grid.row_threads_log2);
}

}  // namespace

Outcome scale_rows(const ScaleRowsParams& p, Stream stream) {
  if (p.num_rows < 0 || p.num_rows >= INT32_MAX || p.width < 0 || p.num_experts < 0 || p.num_slots < 0) {
    return {Status::kInvalidArgument};
  }
  if (p.width == 0) return {};
  return with_type(p.dtype, [&]<class T>(T*) {
    return is_vectorisable(p.dtype, p.rows, p.width, p.width) ? scale<T, kVector<T>>(p, stream)
                                                              : scale<T, 1>(p, stream);
  });
}

}  // namespace moe::cuda
