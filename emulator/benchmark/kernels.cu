// What the emulator's speed is measured on: a vector add, and C [M,N] fp32 = A [M,K] · B [N,K]ᵀ in bf16, once with
// mma.sync and cp.async (sm_80), once with wgmma and TMA (sm_90a). M, N and K are multiples of the tiles.
#include <cuda.h>
#include <cuda_bf16.h>

#include <cstdint>

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

extern "C" __global__ void vector_add(const float* a, const float* b, float* c, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) c[i] = a[i] + b[i];
}

namespace mma {

constexpr int kTileM = 64, kTileN = 64, kTileK = 32, kStages = 3, kThreads = 128;
constexpr int kRowChunks = kTileK / 8;  // of 16 bytes

// 16-byte chunks of a row of 64 bytes; two rows share a line of 128 bytes, so the chunk moves with every second row.
__device__ __forceinline__ int swizzled(int row, int chunk) { return row * kTileK + ((chunk ^ (row >> 1 & 3)) << 3); }

__device__ __forceinline__ void copy_async(uint32_t to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}

__device__ __forceinline__ void load_matrices(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

__device__ __forceinline__ void multiply(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

}  // namespace mma

// Four warps, 32 × 32 each.
extern "C" __global__ void __launch_bounds__(mma::kThreads)
    gemm_mma(const __nv_bfloat16* a, const __nv_bfloat16* b, float* c, int n, int k) {
  using namespace mma;
  __shared__ __align__(128) __nv_bfloat16 tile_a[kStages][kTileM * kTileK], tile_b[kStages][kTileN * kTileK];
  const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
  const int row0 = blockIdx.y * kTileM, column0 = blockIdx.x * kTileN;
  const int warp_row = warp / 2 * 32, warp_column = warp % 2 * 32;

  auto load_stage = [&](int stage, int step) {
    for (int chunk = thread; chunk < kTileM * kRowChunks; chunk += kThreads) {
      int row = chunk / kRowChunks, part = chunk % kRowChunks;
      size_t column = static_cast<size_t>(step) * kTileK + part * 8;
      copy_async(shared_address(&tile_a[stage][swizzled(row, part)]), a + static_cast<size_t>(row0 + row) * k + column);
      copy_async(shared_address(&tile_b[stage][swizzled(row, part)]),
                 b + static_cast<size_t>(column0 + row) * k + column);
    }
  };

  float d[2][4][4] = {};
  const int steps = k / kTileK;
  for (int stage = 0; stage < kStages - 1; ++stage) {
    if (stage < steps) load_stage(stage, stage);
    asm volatile("cp.async.commit_group;" ::: "memory");
  }
  for (int step = 0; step < steps; ++step) {
    asm volatile("cp.async.wait_group %0;" ::"n"(kStages - 2) : "memory");
    __syncthreads();
    const int stage = step % kStages;
    if (int next = step + kStages - 1; next < steps) load_stage(next % kStages, next);
    asm volatile("cp.async.commit_group;" ::: "memory");
    for (int part = 0; part < kTileK / 16; ++part) {
      uint32_t fragment_a[2][4], fragment_b[2][4];
      for (int m = 0; m < 2; ++m) {
        int row = warp_row + m * 16 + lane % 16, chunk = part * 2 + lane / 16;
        load_matrices(fragment_a[m], shared_address(&tile_a[stage][swizzled(row, chunk)]));
      }
      for (int pair = 0; pair < 2; ++pair) {
        int row = warp_column + pair * 16 + lane / 16 * 8 + lane % 8, chunk = part * 2 + lane / 8 % 2;
        load_matrices(fragment_b[pair], shared_address(&tile_b[stage][swizzled(row, chunk)]));
      }
      for (int m = 0; m < 2; ++m) {
        for (int column = 0; column < 4; ++column) {
          multiply(d[m][column], fragment_a[m], fragment_b[column / 2][column % 2 * 2],
                   fragment_b[column / 2][column % 2 * 2 + 1]);
        }
      }
    }
  }
  for (int m = 0; m < 2; ++m) {
    for (int column = 0; column < 4; ++column) {
      int row = row0 + warp_row + m * 16 + lane / 4, at = column0 + warp_column + column * 8 + lane % 4 * 2;
      *reinterpret_cast<float2*>(c + static_cast<size_t>(row) * n + at) = make_float2(d[m][column][0], d[m][column][1]);
      *reinterpret_cast<float2*>(c + static_cast<size_t>(row + 8) * n + at) =
          make_float2(d[m][column][2], d[m][column][3]);
    }
  }
}

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

namespace wgmma {

constexpr int kTileM = 64, kTileN = 128, kTileK = 64, kStages = 3;
constexpr uint32_t kBytesA = kTileM * kTileK * 2, kBytesB = kTileN * kTileK * 2, kStageBytes = kBytesA + kBytesB;

__device__ __forceinline__ void wait(uint64_t& barrier, uint32_t parity) {
  asm volatile(
      "{\n.reg .pred done;\nAGAIN:\nmbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n@!done bra AGAIN;\n}" ::
          "r"(shared_address(&barrier)),
      "r"(parity)
      : "memory");
}

__device__ __forceinline__ void load_tile(uint32_t to, const CUtensorMap& map, int column, int row, uint64_t& barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(
          to),
      "l"(&map), "r"(column), "r"(row), "r"(shared_address(&barrier))
      : "memory");
}

// Rows of 128 bytes, swizzled; 8 rows are 1024 bytes.
__device__ __forceinline__ uint64_t descriptor(uint32_t address) {
  return static_cast<uint64_t>(address >> 4 & 0x3FFF) | uint64_t{1} << 16 | uint64_t{1024 >> 4} << 32 |
         uint64_t{1} << 62;
}

#define D4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define D16(i) D4(i), D4(i + 4), D4(i + 8), D4(i + 12)
__device__ __forceinline__ void multiply(float (&d)[64], uint64_t a, uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
      "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%"
      "30,%31,"
      "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,"
      "%60,"
      "%61,%62,%63}, %64, %65, 1, 1, 1, 0, 0;"
      : D16(0), D16(16), D16(32), D16(48)
      : "l"(a), "l"(b));
}
#undef D16
#undef D4

}  // namespace wgmma

// One warpgroup multiplies, the first lane of a fifth warp loads.
extern "C" __global__ void __launch_bounds__(160)
    gemm_wgmma(const __grid_constant__ CUtensorMap map_a, const __grid_constant__ CUtensorMap map_b, float* c, int n,
               int k) {
  using namespace wgmma;
  extern __shared__ __align__(1024) uint8_t tiles[];
  __shared__ uint64_t full[kStages], empty[kStages];
  const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32, steps = k / kTileK;
  const int row0 = blockIdx.y * kTileM, column0 = blockIdx.x * kTileN;
  if (thread == 0) {
    for (int stage = 0; stage < kStages; ++stage) {
      asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(&full[stage])) : "memory");
      asm volatile("mbarrier.init.shared::cta.b64 [%0], 4;" ::"r"(shared_address(&empty[stage])) : "memory");
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  }
  __syncthreads();
  if (warp == 4) {
    if (lane != 0) return;
    for (int step = 0; step < steps; ++step) {
      const int stage = step % kStages;
      wait(empty[stage], (step / kStages & 1) ^ 1);
      asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(&full[stage])),
                   "r"(kStageBytes)
                   : "memory");
      const uint32_t to = shared_address(tiles) + stage * kStageBytes;
      load_tile(to, map_a, step * kTileK, row0, full[stage]);
      load_tile(to + kBytesA, map_b, step * kTileK, column0, full[stage]);
    }
    return;
  }
  float d[64] = {};
  for (int step = 0; step < steps; ++step) {
    const int stage = step % kStages;
    wait(full[stage], step / kStages & 1);
    const uint32_t from = shared_address(tiles) + stage * kStageBytes;
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
    for (int part = 0; part < kTileK / 16; ++part)
      multiply(d, descriptor(from + part * 32), descriptor(from + kBytesA + part * 32));
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
    if (lane == 0)
      asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(&empty[stage])) : "memory");
  }
#pragma unroll
  for (int column = 0; column < kTileN / 8; ++column) {
    float* to = c + static_cast<size_t>(row0 + warp * 16 + lane / 4) * n + column0 + column * 8 + lane % 4 * 2;
    *reinterpret_cast<float2*>(to) = make_float2(d[4 * column], d[4 * column + 1]);
    *reinterpret_cast<float2*>(to + 8 * static_cast<size_t>(n)) = make_float2(d[4 * column + 2], d[4 * column + 3]);
  }
}

#endif
