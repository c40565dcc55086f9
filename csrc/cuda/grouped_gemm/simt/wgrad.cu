// Weight gradients by plain multiply-adds: out[e][n, k] (+)= sum over the rows r of e of left[r, n] * right[r, k].
//
// A block has 64 x 64 of one expert's [n, k] and walks over all its rows; the blocks of one row of tiles are
// neighbours. Rows are the inner dimension here, so it is there that both operands are gathered: offsets of the rows of
// a step are asked for two steps ahead. Experts without rows get zeros, or nothing where gradients are added. For the
// order of sums see main_loop.cuh.
#include <utility>

#include "cuda/common/launch_kernel.cuh"
#include "cuda/grouped_gemm/simt/access.h"
#include "cuda/grouped_gemm/simt/main_loop.cuh"
#include "cuda/grouped_gemm/slice.cuh"

namespace moe::cuda::simt {
namespace {

constexpr int kBlockM = 64;

struct WgradLaunch {
  WgradProduct product;
  Access left_access, right_access;
  FastDivide row_blocks, column_blocks;  // tiles of [n, k]
  bool vector;                           // out moves in vectors
};

// Offsets along the rows: of two steps, left ones and then right ones.
template <class T>
struct RowTables {
  static constexpr int kK = kBlockK<T>;
  const RowOperand& operand;  // this thread's, of the two
  int64_t first_row;
  int32_t num_rows;
  int64_t (*tables)[2][kK];
  int thread;
  int64_t ahead;

  __device__ bool takes_part() const { return thread < 2 * kK; }

  __device__ void prefetch(int step) {
    const int32_t within = step * kK + thread % kK;
    ahead = kAbsent;
    if (!takes_part() || within >= num_rows) return;
    int64_t row = first_row + within;
    if (operand.gather) {
      const int32_t index = operand.gather[row];
      row = index < 0 ? int64_t{-1} : operand.divisor(index);
    }
    if (row >= 0 && row < operand.num_rows) ahead = row * operand.stride;
  }
  __device__ void commit(int step) const {
    if (takes_part()) tables[step % 2][thread / kK][thread % kK] = ahead;
  }
  template <class A, class B>
  __device__ void select(int step, A& a, B& b) const {
    a.select(tables[step % 2][0]);
    b.select(tables[step % 2][1]);
  }
};

template <class T, class Out>
__device__ void write(const WgradLaunch& launch, int32_t expert, int32_t first_n, int32_t first_k, const acc_t<T>* sums,
                      int thread) {
  using A = acc_t<T>;
  with_vectors(launch.vector, [&]<class Vectors>(Vectors) {
    using R = Run<A, Vectors::value>;
    const WgradProduct& product = launch.product;
    const TileColumns columns = {ColumnOrder::kPlain, product.k, first_k};
    const R run = R::template make<kBlockN, kThreads>(columns, thread);
    if (!run.any()) return;
    A value[R::kRun], none[R::kRun];
    for (int row = run.row; row < kBlockM && first_n + row < product.n; row += run.row_step) {
      read_sums<kBlockN>(sums + row * TileShape<T, kBlockM>::kSumsStride, ColumnOrder::kPlain, run, value, none);
      Out* out = static_cast<Out*>(product.out) + expert * product.out_expert_stride +
                 (first_n + row) * product.out_n_stride + run.column * product.out_k_stride;
      if constexpr (R::kVector) {
        if (product.accumulate) {
          A before[R::kRun];
          to_acc(load<R::kRun>(out), before);
#pragma unroll
          for (int i = 0; i < R::kRun; ++i) value[i] += before[i];
        }
        store(out, from_acc<Out>(value));
      } else {
#pragma unroll
        for (int i = 0; i < R::kRun; ++i) {
          if (!run.has(i)) continue;
          Out& target = out[i * R::kStep * product.out_k_stride];
          target = from_acc<Out>(product.accumulate ? to_acc(target) + value[i] : value[i]);
        }
      }
    }
  });
}

template <class T>
__global__ void __launch_bounds__(kThreads, TileShape<T, kBlockM>::kMinBlocks)
    wgrad_kernel(const __grid_constant__ WgradLaunch launch) {
  using A = acc_t<T>;
  using Shape = TileShape<T, kBlockM>;
  __shared__ __align__(16) A shared[Shape::kShared];
  __shared__ int64_t left_columns[kBlockM], right_columns[kBlockN], tables[2][2][kBlockK<T>];

  const WgradProduct& product = launch.product;
  const int thread = threadIdx.x;
  const uint32_t tile_row = launch.column_blocks(blockIdx.x), expert = launch.row_blocks(tile_row);
  const int32_t first_k = (blockIdx.x - tile_row * launch.column_blocks.divisor()) * kBlockN;
  const int32_t first_n = (tile_row - expert * launch.row_blocks.divisor()) * kBlockM;
  const auto offset = [&](uint32_t e) {
    return min(max(int64_t{product.expert_offsets[e]}, int64_t{0}), product.num_rows);
  };
  const int64_t begin = offset(expert);
  const int32_t num_rows = static_cast<int32_t>(max(offset(expert + 1) - begin, int64_t{0}));
  if (product.accumulate && num_rows == 0) return;

  if (thread < kBlockM) {
    const int32_t column = first_n + thread;
    left_columns[thread] = column < product.n ? column * product.left.k_stride : kAbsent;
  } else {
    const int32_t column = first_k + thread - kBlockM;
    right_columns[thread - kBlockM] = column < product.k ? column * product.right.k_stride : kAbsent;
  }
  RowTables<T> rows = {thread < kBlockK<T> ? product.left : product.right, begin, num_rows, tables, thread, kAbsent};
  for (int step = 0; step < 2; ++step) {
    rows.prefetch(step);
    rows.commit(step);
  }
  __syncthreads();
  Operand<T, kBlockM, true> left({static_cast<const T*>(product.left.data), left_columns, 0, launch.left_access},
                                 num_rows, thread);
  Operand<T, kBlockN, true> right({static_cast<const T*>(product.right.data), right_columns, 0, launch.right_access},
                                  num_rows, thread);
  product_of_tile<T, kBlockM>(left, right, num_rows, thread, shared, rows);
  if (product.accumulate) {
    write<T, A>(launch, expert, first_n, first_k, shared, thread);
  } else {
    write<T, T>(launch, expert, first_n, first_k, shared, thread);
  }
}

// The same gradient as its transpose.
WgradProduct transposed(const WgradProduct& product) {
  WgradProduct result = product;
  std::swap(result.left, result.right);
  std::swap(result.n, result.k);
  std::swap(result.out_n_stride, result.out_k_stride);
  return result;
}

}  // namespace

Outcome wgrad(const WgradProduct& given, const GemmPlan& plan, Stream stream) {
  constexpr const char* kName = "simt::wgrad";
  if (plan.family != Family::kSimt) return {Status::kUnsupported, 0, kName};
  // Tiles are written along k: that had better be the contiguous dimension.
  const WgradProduct product = given.out_k_stride != 1 && given.out_n_stride == 1 ? transposed(given) : given;
  const int64_t row_blocks = (product.n + kBlockM - 1) / kBlockM, column_blocks = (product.k + kBlockN - 1) / kBlockN;
  const int64_t blocks = product.num_experts * row_blocks * column_blocks;
  if (blocks == 0) return {};
  if (blocks > INT32_MAX) return {Status::kInvalidArgument, 0, kName};
  const DType wide = product.dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32;
  const WgradLaunch wgrad = {
      product,
      column_access(product.dtype, product.left, product.n),
      column_access(product.dtype, product.right, product.k),
      FastDivide(static_cast<uint32_t>(row_blocks)),
      FastDivide(static_cast<uint32_t>(column_blocks)),
      product.out_k_stride == 1 && fits_vectors(product.accumulate ? wide : product.dtype, product.out,
                                                {product.out_expert_stride, product.out_n_stride, product.k})};
  return with_type(product.dtype, [&]<class T>(T*) {
    return launch(kName, wgrad_kernel<T>, dim3(static_cast<uint32_t>(blocks)), dim3(kThreads), 0, stream, wgrad);
  });
}

}  // namespace moe::cuda::simt
