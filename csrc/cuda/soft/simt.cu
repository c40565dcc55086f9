// soft_mix's products by plain multiply-adds: any dtype, size and stride. A block has 64 x 64 of a sequence's results
// and walks over the inner dimension by the SIMT engine's main loop, which says in what order sums are formed.
#include "cuda/common/launch_kernel.cuh"
#include "cuda/grouped_gemm/simt/main_loop.cuh"
#include "cuda/grouped_gemm/store_epilogue.cuh"
#include "cuda/soft/logits_epilogue.cuh"
#include "cuda/soft/simt_operands.cuh"

namespace moe::cuda::simt {

namespace {

constexpr int kBlock = 64;

// Offsets along k are no table here.
struct NoHooks {
  template <class Left, class Right>
  __device__ void select(int, Left&, Right&) const {}
  __device__ void prefetch(int) const {}
  __device__ void commit(int) const {}
};

// A block's place.
struct Blocks {
  FastDivide column_blocks, row_blocks;

  struct Place {
    int64_t batch;
    int row, column;
  };
  __device__ Place place() const {
    const uint32_t row_index = column_blocks(blockIdx.x), batch = row_blocks(row_index);
    return {batch, static_cast<int>(row_index - batch * row_blocks.divisor()) * kBlock,
            static_cast<int>(blockIdx.x - row_index * column_blocks.divisor()) * kBlock};
  }
};

struct ProductLaunch {
  SoftProduct product;
  Blocks blocks;
  bool logits_vector, right_vector, out_vector;
};

struct LogitsLaunch {
  SoftLogits logits;
  Blocks blocks;
  bool quads, tokens_vector, slots_vector;
};

template <class A, bool kTokensInner>
__global__ void __launch_bounds__(kThreads, TileShape<A, kBlock>::kMinBlocks)
    soft_product_kernel(const __grid_constant__ ProductLaunch launch) {
  using Shape = TileShape<A, kBlock>;
  __shared__ __align__(16) A shared[Shape::kShared];
  const SoftProduct& product = launch.product;
  const SoftMixParams& mix = product.mix;
  const int thread = threadIdx.x;
  const Blocks::Place place = launch.blocks.place();
  const int num_rows = static_cast<int>(kTokensInner ? mix.num_slots : mix.num_tokens);
  const int num_inner = static_cast<int>(kTokensInner ? mix.num_tokens : mix.num_slots);
  const int width = static_cast<int>(mix.width);

  WeightOperand<A, !kTokensInner> weights(mix, place.batch, place.row, launch.logits_vector, thread);
  DataOperand<A, false> right(product.right, mix.dtype, place.batch, place.column, width, num_inner,
                              launch.right_vector, thread);
  NoHooks none;
  product_of_tile<A, kBlock>(weights, right, num_inner, thread, shared, none);

  const Slice slice = {0, place.row, min(num_rows - place.row, kBlock), {ColumnOrder::kPlain, width, place.column}};
  const auto write = [&]<class T>(T*) {
    StoreEpilogue epilogue = {};
    epilogue.out = static_cast<T*>(product.out) + place.batch * num_rows * width;
    epilogue.out_stride = width;
    epilogue.vector = launch.out_vector;
    finish<T, kBlock, kBlockN, Shape::kSumsStride, kThreads>(epilogue, shared, slice, thread);
  };
  if constexpr (std::is_same_v<A, double>) {
    write(static_cast<double*>(nullptr));
  } else if (mix.dtype == DType::kFloat32) {
    write(static_cast<float*>(nullptr));
  } else if (mix.dtype == DType::kBFloat16) {
    write(static_cast<__nv_bfloat16*>(nullptr));
  } else {
    write(static_cast<__half*>(nullptr));
  }
}

template <class A>
__global__ void __launch_bounds__(kThreads, TileShape<A, kBlock>::kMinBlocks)
    soft_logits_kernel(const __grid_constant__ LogitsLaunch launch) {
  using Shape = TileShape<A, kBlock>;
  __shared__ __align__(16) A shared[Shape::kShared];
  const SoftLogits& g = launch.logits;
  const SoftMixParams& mix = g.mix;
  const int thread = threadIdx.x;
  const Blocks::Place place = launch.blocks.place();
  const int width = static_cast<int>(mix.width);

  DataOperand<A, true> tokens(g.tokens, mix.dtype, place.batch, place.row, static_cast<int>(mix.num_tokens), width,
                              launch.tokens_vector, thread);
  DataOperand<A, true> slots(g.slots, mix.dtype, place.batch, place.column, static_cast<int>(mix.num_slots), width,
                             launch.slots_vector, thread);
  NoHooks none;
  product_of_tile<A, kBlock>(tokens, slots, width, thread, shared, none);

  const auto write = [&]<class L>(L*) {
    finish_logits<L, false, kBlock, kBlockN, Shape::kSumsStride, kThreads>(g, launch.quads, place.batch, place.row,
                                                                           place.column, shared, thread);
  };
  if constexpr (std::is_same_v<A, double>) {
    write(static_cast<double*>(nullptr));
  } else if (mix.logits_dtype == DType::kFloat32) {
    write(static_cast<float*>(nullptr));
  } else if (mix.logits_dtype == DType::kBFloat16) {
    write(static_cast<__nv_bfloat16*>(nullptr));
  } else {
    write(static_cast<__half*>(nullptr));
  }
}

// Sets the places of rows x columns of each sequence. Returns the number of blocks, or -1 where there are too many.
int64_t cut(int64_t batch, int64_t rows, int64_t columns, Blocks& blocks) {
  const int64_t row_blocks = (rows + kBlock - 1) / kBlock, column_blocks = (columns + kBlock - 1) / kBlock;
  const int64_t count = batch * row_blocks * column_blocks;
  if (count == 0) return 0;
  if (count > INT32_MAX) return -1;
  blocks = {FastDivide(static_cast<uint32_t>(column_blocks)), FastDivide(static_cast<uint32_t>(row_blocks))};
  return count;
}

// A vector of accumulators' worth of data.
int64_t vector_bytes(DType dtype) { return (dtype == DType::kFloat64 ? 2 : 4) * size_of(dtype); }

bool in_vectors(const SoftRows& rows, DType dtype, int64_t width) {
  return in_pieces(rows, dtype, width, vector_bytes(dtype));
}

}  // namespace

Outcome soft_product(const SoftProduct& product, Stream stream) {
  constexpr const char* kName = "simt::soft_product";
  const SoftMixParams& p = product.mix;
  Blocks places;
  const int64_t count = cut(p.batch, product.rows(), p.width, places);
  if (count == 0) return {};
  if (count < 0) return {Status::kUnsupported, 0, kName};
  const ProductLaunch arguments = {
      product, places,
      in_vectors({p.logits, p.logits_batch_stride, p.logits_stride}, p.logits_dtype, p.num_slots) &&
          (!p.dispatch || reinterpret_cast<uintptr_t>(p.statistics) % 16 == 0),
      in_vectors(product.right, p.dtype, p.width), in_vectors({product.out, 0, p.width}, p.dtype, p.width)};
  const auto run = [&](auto* kernel) {
    return launch(kName, kernel, dim3(static_cast<uint32_t>(count)), dim3(kThreads), 0, stream, arguments);
  };
  if (p.dtype == DType::kFloat64) {
    return product.tokens_inner ? run(soft_product_kernel<double, true>) : run(soft_product_kernel<double, false>);
  }
  return product.tokens_inner ? run(soft_product_kernel<float, true>) : run(soft_product_kernel<float, false>);
}

Outcome soft_logits(const SoftLogits& logits, Stream stream) {
  constexpr const char* kName = "simt::soft_logits";
  const SoftMixParams& p = logits.mix;
  Blocks places;
  const int64_t count = cut(p.batch, p.num_tokens, p.num_slots, places);
  if (count == 0) return {};
  if (count < 0) return {Status::kUnsupported, 0, kName};
  const LogitsLaunch arguments = {logits, places, logits_in_quads(logits), in_vectors(logits.tokens, p.dtype, p.width),
                                  in_vectors(logits.slots, p.dtype, p.width)};
  const auto run = [&](auto* kernel) {
    return launch(kName, kernel, dim3(static_cast<uint32_t>(count)), dim3(kThreads), 0, stream, arguments);
  };
  return p.dtype == DType::kFloat64 ? run(soft_logits_kernel<double>) : run(soft_logits_kernel<float>);
}

}  // namespace moe::cuda::simt
