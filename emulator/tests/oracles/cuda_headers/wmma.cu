// The warp matrix API of mma.h: every shape and type of sm_80, all combinations of operand layouts.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <mma.h>

using namespace nvcuda;

// D = A B + C for one tile of M x N x K; a, b and c are whole matrices in the fragment's layout, without padding.
template <int M, int N, int K, typename In, typename Out, typename LayoutA, typename LayoutB, typename Element = In>
__device__ void tile(const Element* a, const Element* b, const Out* c, Out* d) {
  wmma::fragment<wmma::matrix_a, M, N, K, In, LayoutA> fragment_a;
  wmma::fragment<wmma::matrix_b, M, N, K, In, LayoutB> fragment_b;
  wmma::fragment<wmma::accumulator, M, N, K, Out> accumulator;
  wmma::load_matrix_sync(fragment_a, a, std::is_same_v<LayoutA, wmma::row_major> ? K : M);
  wmma::load_matrix_sync(fragment_b, b, std::is_same_v<LayoutB, wmma::row_major> ? N : K);
  wmma::load_matrix_sync(accumulator, c, N, wmma::mem_row_major);
  wmma::mma_sync(accumulator, fragment_a, fragment_b, accumulator);
  // Stored by columns, so that both layouts of the accumulator occur.
  wmma::store_matrix_sync(d, accumulator, M, wmma::mem_col_major);
}

#define TILE_KERNELS(NAME, M, N, K, IN, OUT, ELEMENT)                                              \
  extern "C" __global__ void NAME##_rr(const ELEMENT* a, const ELEMENT* b, const OUT* c, OUT* d) { \
    tile<M, N, K, IN, OUT, wmma::row_major, wmma::row_major, ELEMENT>(a, b, c, d);                 \
  }                                                                                                \
  extern "C" __global__ void NAME##_rc(const ELEMENT* a, const ELEMENT* b, const OUT* c, OUT* d) { \
    tile<M, N, K, IN, OUT, wmma::row_major, wmma::col_major, ELEMENT>(a, b, c, d);                 \
  }                                                                                                \
  extern "C" __global__ void NAME##_cr(const ELEMENT* a, const ELEMENT* b, const OUT* c, OUT* d) { \
    tile<M, N, K, IN, OUT, wmma::col_major, wmma::row_major, ELEMENT>(a, b, c, d);                 \
  }                                                                                                \
  extern "C" __global__ void NAME##_cc(const ELEMENT* a, const ELEMENT* b, const OUT* c, OUT* d) { \
    tile<M, N, K, IN, OUT, wmma::col_major, wmma::col_major, ELEMENT>(a, b, c, d);                 \
  }

TILE_KERNELS(fp16_fp32_16x16, 16, 16, 16, half, float, half)
TILE_KERNELS(fp16_fp32_32x8, 32, 8, 16, half, float, half)
TILE_KERNELS(fp16_fp32_8x32, 8, 32, 16, half, float, half)
TILE_KERNELS(fp16_fp16_16x16, 16, 16, 16, half, half, half)
TILE_KERNELS(bf16_fp32_16x16, 16, 16, 16, __nv_bfloat16, float, __nv_bfloat16)
TILE_KERNELS(bf16_fp32_32x8, 32, 8, 16, __nv_bfloat16, float, __nv_bfloat16)
TILE_KERNELS(bf16_fp32_8x32, 8, 32, 16, __nv_bfloat16, float, __nv_bfloat16)
TILE_KERNELS(int8_int32_16x16, 16, 16, 16, signed char, int, signed char)
TILE_KERNELS(int8_int32_32x8, 32, 8, 16, signed char, int, signed char)
TILE_KERNELS(int8_int32_8x32, 8, 32, 16, signed char, int, signed char)
TILE_KERNELS(uint8_int32_16x16, 16, 16, 16, unsigned char, int, unsigned char)
TILE_KERNELS(tf32_fp32_16x16, 16, 16, 8, wmma::precision::tf32, float, float)
TILE_KERNELS(fp64_fp64_8x8, 8, 8, 4, double, double, double)

// A product of any size in tiles, with operands in shared memory, a scale on the fragments and the fragment loop.
extern "C" __global__ void matmul(const half* a, const half* b, float* c, int m, int n, int k, float scale) {
  constexpr int kTile = 16;
  __shared__ half a_tile[kTile * 24];  // padded rows
  __shared__ half b_tile[kTile * 24];
  wmma::fragment<wmma::accumulator, 16, 16, 16, float> total;
  wmma::fill_fragment(total, 0.0f);
  for (int start = 0; start < k; start += kTile) {
    for (int i = threadIdx.x; i < kTile * kTile; i += 32) {
      const int row = i / kTile, column = i % kTile;
      a_tile[row * 24 + column] = a[(blockIdx.y * kTile + row) * k + start + column];
      b_tile[row * 24 + column] = b[(start + row) * n + blockIdx.x * kTile + column];
    }
    __syncwarp();
    wmma::fragment<wmma::matrix_a, 16, 16, 16, half, wmma::row_major> x;
    wmma::fragment<wmma::matrix_b, 16, 16, 16, half, wmma::row_major> y;
    wmma::load_matrix_sync(x, a_tile, 24);
    wmma::load_matrix_sync(y, b_tile, 24);
    wmma::mma_sync(total, x, y, total);
    __syncwarp();
  }
  for (int i = 0; i < total.num_elements; ++i) total.x[i] *= scale;
  wmma::store_matrix_sync(c + blockIdx.y * kTile * n + blockIdx.x * kTile, total, n, wmma::mem_row_major);
}
