// wgmma: fences, groups, operands in shared memory, warp-specialised pipelines. sm_90a.
#include "planted.cuh"

constexpr int kColumnsK = 64;  // of one tile: a row of 128 bytes

// One warpgroup, one 64 x 8 x 64 product of tiles that TMA brought.
constexpr int kNoFence = 1, kReadBeforeWait = 2, kWaitTooLax = 3, kWrongStride = 4, kThreeWarps = 5, kNotCommitted = 6;

template <int kBug>
__global__ void __launch_bounds__(128)
    one_tile(const __grid_constant__ CUtensorMap map_a, const __grid_constant__ CUtensorMap map_b, float* out) {
  __shared__ alignas(1024) __nv_bfloat16 a[64 * kColumnsK];
  __shared__ alignas(1024) __nv_bfloat16 b[8 * kColumnsK];
  __shared__ uint64_t full;
  int tid = threadIdx.x, warp = tid / 32, lane = tid % 32;
  if (tid == 0) {
    mbarrier_init(&full, 1);
    fence_async_proxy();
  }
  __syncthreads();
  if (tid == 0) {
    mbarrier_arrive_expect(&full, sizeof(a) + sizeof(b));
    tma_load(a, &map_a, 0, 0, &full);
    tma_load(b, &map_b, 0, 0, &full);
  }
  mbarrier_try_wait(&full, 0);
  float d[4] = {1.0f, 1.0f, 1.0f, 1.0f};
  wgmma_pin(d);
  if (kBug != kThreeWarps || warp < 3) {
    if (kBug != kNoFence) wgmma_fence();  // BUG(kThreeWarps): wgmma_misuse | divergent_collective | deadlock
    for (int k = 0; k < 4; ++k) {
      uint64_t rows = wgmma_descriptor(shared_address(a) + 32 * k, kBug == kWrongStride ? 512 : 1024);
      uint64_t columns = wgmma_descriptor(shared_address(b) + 32 * k);
      wgmma(d, rows, columns);  // BUG(kNoFence): wgmma_misuse  // BUG(kThreeWarps): wgmma_misuse | divergent_collective
    }
    if (kBug != kNotCommitted) wgmma_commit();
    if (kBug != kReadBeforeWait)
      wgmma_wait<kBug == kWaitTooLax ? 1 : 0>();  // BUG(kThreeWarps): wgmma_misuse | deadlock
  }
  float* corner = out + (warp * 16 + lane / 4) * 8 + lane % 4 * 2;
  // clang-format off
  corner[0] = d[0];  // BUG(kReadBeforeWait): async_too_early | wgmma_misuse  // BUG(kWaitTooLax): async_too_early | wgmma_misuse  // BUG(kNotCommitted): async_too_early | wgmma_misuse  // BUG(kWrongStride): wrong_result
  corner[1] = d[1];  // BUG(kReadBeforeWait): async_too_early | wgmma_misuse  // BUG(kWaitTooLax): async_too_early | wgmma_misuse  // BUG(kNotCommitted): async_too_early | wgmma_misuse
  // clang-format on
  corner[64] = d[2];
  corner[65] = d[3];
  if (kBug == kReadBeforeWait) wgmma_wait<0>();
}
#define PLANT_ONE_TILE(bug) \
  PLANT_VARIANT(one_tile, bug, const __grid_constant__ CUtensorMap, const __grid_constant__ CUtensorMap, float*)
PLANT_ONE_TILE(kSound);
PLANT_ONE_TILE(kNoFence);
PLANT_ONE_TILE(kReadBeforeWait);
PLANT_ONE_TILE(kWaitTooLax);
PLANT_ONE_TILE(kWrongStride);
PLANT_ONE_TILE(kThreeWarps);
PLANT_ONE_TILE(kNotCommitted);

// Operands written with ordinary stores: A from registers of all threads, B by TMA's layout made by hand.
constexpr int kNoProxyFence = 1, kNoBarrier = 2, kRewrittenInFlight = 3, kUnaligned = 4;

template <int kBug>
__global__ void __launch_bounds__(128) stored_operands(const __nv_bfloat16* a, const __nv_bfloat16* b, float* out) {
  __shared__ alignas(1024) uint4 rows[64 * 8];
  __shared__ alignas(1024) uint4 columns[8 * 8];
  int tid = threadIdx.x, warp = tid / 32, lane = tid % 32;
  float d[4] = {};
  wgmma_pin(d);
  for (int step = 0; step < 2; ++step) {
    const uint4* source_a = reinterpret_cast<const uint4*>(a) + step * 64 * 8;
    const uint4* source_b = reinterpret_cast<const uint4*>(b) + step * 8 * 8;
    for (int i = tid; i < 64 * 8; i += 128) {
      // clang-format off
      rows[i / 8 * 8 + ((i % 8) ^ (i / 8 % 8))] = source_a[i];  // BUG(kNoBarrier): shared_race | async_too_early  // BUG(kRewrittenInFlight): async_too_early
      // clang-format on
    }
    if (tid < 64) {
      // clang-format off
      columns[tid / 8 * 8 + ((tid % 8) ^ (tid / 8))] = source_b[tid];  // BUG(kNoBarrier): shared_race | async_too_early  // BUG(kRewrittenInFlight): async_too_early
      // clang-format on
    }
    if (kBug != kNoProxyFence) fence_async_proxy();
    if (kBug != kNoBarrier) __syncthreads();
    wgmma_fence();
    for (int k = 0; k < 4; ++k) {
      uint64_t left = wgmma_descriptor(shared_address(rows) + 32 * k + (kBug == kUnaligned ? 1024 * 200 : 0));
      uint64_t right = wgmma_descriptor(shared_address(columns) + 32 * k);
      // clang-format off
      wgmma(d, left, right);  // BUG(kNoProxyFence): missing_proxy_fence  // BUG(kNoBarrier): missing_proxy_fence | shared_race | uninitialised_shared  // BUG(kUnaligned): out_of_bounds | bad_descriptor
      // clang-format on
    }
    wgmma_commit();
    if (kBug != kRewrittenInFlight || step == 1) wgmma_wait<0>();
    __syncthreads();
  }
  float* corner = out + (warp * 16 + lane / 4) * 8 + lane % 4 * 2;
  corner[0] = d[0];
  corner[1] = d[1];
  corner[64] = d[2];
  corner[65] = d[3];
}
#define PLANT_STORED(bug) PLANT_VARIANT(stored_operands, bug, const __nv_bfloat16*, const __nv_bfloat16*, float*)
PLANT_STORED(kSound);
PLANT_STORED(kNoProxyFence);
PLANT_STORED(kNoBarrier);
PLANT_STORED(kRewrittenInFlight);
PLANT_STORED(kUnaligned);

// Rows gathered with cp.async, which writes through the ordinary proxy; the consumers learn of them by an mbarrier.
constexpr int kGatherNoFence = 1, kGatherNoWait = 2;

template <int kBug>
__global__ void __launch_bounds__(256)
    gathered_rows(const __nv_bfloat16* a, const int* row_of, const __nv_bfloat16* b, float* out) {
  __shared__ alignas(1024) uint4 rows[64 * 8];
  __shared__ alignas(1024) uint4 columns[8 * 8];
  __shared__ uint64_t full;
  int tid = threadIdx.x, warp = tid / 32, lane = tid % 32;
  if (tid == 0) mbarrier_init(&full, 128);
  __syncthreads();
  if (tid >= 128) {
    // clang-format off
    for (int i = tid - 128; i < 64 * 8; i += 128) {
      copy_16(&rows[i / 8 * 8 + ((i % 8) ^ (i / 8 % 8))], a + row_of[i / 8] * kColumnsK + i % 8 * 8);  // BUG(kGatherNoWait): async_too_early | shared_race
    }
    for (int i = tid - 128; i < 8 * 8; i += 128) {
      copy_16(&columns[i / 8 * 8 + ((i % 8) ^ (i / 8))], b + i * 8);  // BUG(kGatherNoWait): async_too_early | shared_race
    }
    // clang-format on
    copy_arrive_noinc(&full);
    copy_wait<0>();
  } else {
    float d[4] = {};
    wgmma_pin(d);
    if (kBug != kGatherNoWait) mbarrier_try_wait(&full, 0);
    if (kBug != kGatherNoFence) fence_async_proxy();
    wgmma_fence();
    for (int k = 0; k < 4; ++k) {
      uint64_t left = wgmma_descriptor(shared_address(rows) + 32 * k);
      uint64_t right = wgmma_descriptor(shared_address(columns) + 32 * k);
      // clang-format off
      wgmma(d, left, right);  // BUG(kGatherNoFence): missing_proxy_fence  // BUG(kGatherNoWait): async_too_early | shared_race | uninitialised_shared | missing_proxy_fence
      // clang-format on
    }
    wgmma_commit();
    wgmma_wait<0>();
    float* corner = out + (warp * 16 + lane / 4) * 8 + lane % 4 * 2;
    corner[0] = d[0];
    corner[1] = d[1];
    corner[64] = d[2];
    corner[65] = d[3];
  }
}
#define PLANT_GATHERED(bug) \
  PLANT_VARIANT(gathered_rows, bug, const __nv_bfloat16*, const int*, const __nv_bfloat16*, float*)
PLANT_GATHERED(kSound);
PLANT_GATHERED(kGatherNoFence);
PLANT_GATHERED(kGatherNoWait);

// A's fragments in registers, which are free again only when the group is complete.
template <bool kBug>
__global__ void __launch_bounds__(128) registers_overwritten(const uint32_t* a, const __nv_bfloat16* b, float* out) {
  __shared__ alignas(1024) uint4 columns[8 * 8];
  int tid = threadIdx.x, warp = tid / 32, lane = tid % 32;
  if (tid < 64) columns[tid / 8 * 8 + ((tid % 8) ^ (tid / 8))] = reinterpret_cast<const uint4*>(b)[tid];
  fence_async_proxy();
  __syncthreads();
  float d[4] = {};
  const uint32_t* row = a + (warp * 16 + lane / 4) * 32 + lane % 4;
  uint32_t fragment[4] = {row[0], row[8 * 32], row[4], row[8 * 32 + 4]};
  uint64_t right = wgmma_descriptor(shared_address(columns));
  if constexpr (kBug) {
    asm volatile(
        "{ .reg .pred accumulate; .reg .b32 a<4>;\n"
        "setp.eq.u32 accumulate, 0, 0;\n"
        "mov.b32 a0, %4; mov.b32 a1, %5; mov.b32 a2, %6; mov.b32 a3, %7;\n"
        "wgmma.fence.sync.aligned;\n"
        "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%0, %1, %2, %3}, {a0, a1, a2, a3}, %8, accumulate, 1, 1, "
        "0;\n"
        "wgmma.commit_group.sync.aligned;\n"
        "mov.b32 a0, 0;\n"
        "wgmma.wait_group.sync.aligned 0; }"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(fragment[0]), "r"(fragment[1]), "r"(fragment[2]), "r"(fragment[3]),
          "l"(right)  // BUG: async_too_early | wgmma_misuse
        : "memory");
  } else {
    wgmma_pin(d);
    wgmma_fence();
    wgmma_registers(d, fragment, right);
    wgmma_commit();
    wgmma_wait<0>();
  }
  float* corner = out + (warp * 16 + lane / 4) * 8 + lane % 4 * 2;
  corner[0] = d[0];
  corner[1] = d[1];
  corner[64] = d[2];
  corner[65] = d[3];
}
PLANT(registers_overwritten, const uint32_t*, const __nv_bfloat16*, float*);

// One product after the other in two accumulators, of which one is in flight while the other is read.
template <bool kBug>
__global__ void __launch_bounds__(128) ping_pong_accumulators(const __grid_constant__ CUtensorMap map_a,
                                                              const __grid_constant__ CUtensorMap map_b, float* out) {
  __shared__ alignas(1024) __nv_bfloat16 a[64 * kColumnsK];
  __shared__ alignas(1024) __nv_bfloat16 b[2][8 * kColumnsK];
  __shared__ uint64_t full;
  int tid = threadIdx.x, warp = tid / 32, lane = tid % 32;
  if (tid == 0) {
    mbarrier_init(&full, 1);
    fence_async_proxy();
  }
  __syncthreads();
  if (tid == 0) {
    mbarrier_arrive_expect(&full, sizeof(a) + sizeof(b));
    tma_load(a, &map_a, 0, 0, &full);
    tma_load(b[0], &map_b, 0, 0, &full);
    tma_load(b[1], &map_b, 0, 8, &full);
  }
  mbarrier_try_wait(&full, 0);
  float first[4] = {}, second[4] = {};
  wgmma_pin(first);
  wgmma_pin(second);
  wgmma_fence();
  for (int k = 0; k < 4; ++k) {
    wgmma(first, wgmma_descriptor(shared_address(a) + 32 * k), wgmma_descriptor(shared_address(b[0]) + 32 * k));
  }
  wgmma_commit();
  for (int k = 0; k < 4; ++k) {
    wgmma(second, wgmma_descriptor(shared_address(a) + 32 * k), wgmma_descriptor(shared_address(b[1]) + 32 * k));
  }
  wgmma_commit();
  wgmma_wait<1>();
  float* corner = out + (warp * 16 + lane / 4) * 16 + lane % 4 * 2;
  for (int i = 0; i < 4; ++i) corner[i / 2 * 128 + i % 2] = first[i];
  if (!kBug) wgmma_wait<0>();
  for (int i = 0; i < 4; ++i) corner[8 + i / 2 * 128 + i % 2] = second[i];  // BUG: async_too_early | wgmma_misuse
  if (kBug) wgmma_wait<0>();
}
PLANT(ping_pong_accumulators, const __grid_constant__ CUtensorMap, const __grid_constant__ CUtensorMap, float*);

// C[128, 8] = A[128, K] * B[8, K]^T: a producer warp, two consumer warpgroups, two stages, one group kept in flight.
constexpr int kReleaseInFlight = 1, kEmptyCountTooLow = 2, kNoFullWait = 3, kStoreInFlight = 4, kExpectOneOperand = 5;

template <int kBug>
__global__ void __launch_bounds__(288)
    gemm(const __grid_constant__ CUtensorMap map_a, const __grid_constant__ CUtensorMap map_b, float* out, int k) {
  constexpr int kStages = 2;
  __shared__ alignas(1024) __nv_bfloat16 a[kStages][128 * kColumnsK];
  __shared__ alignas(1024) __nv_bfloat16 b[kStages][8 * kColumnsK];
  __shared__ uint64_t full[kStages], empty[kStages];
  int tid = threadIdx.x, warp = tid / 32, lane = tid % 32, steps = k / kColumnsK;
  if (tid == 0) {
    for (int stage = 0; stage < kStages; ++stage) {
      mbarrier_init(&full[stage], 1);
      mbarrier_init(&empty[stage], kBug == kEmptyCountTooLow ? 4 : 8);
    }
    fence_async_proxy();
  }
  __syncthreads();
  if (warp == 8) {
    if (lane == 0) {
      for (int i = 0; i < steps; ++i) {
        int stage = i % kStages, phase = i / kStages % 2;
        // clang-format off
        mbarrier_try_wait(&empty[stage], phase ^ 1);  // BUG(kEmptyCountTooLow): deadlock  // BUG(kNoFullWait): deadlock  // BUG(kExpectOneOperand): deadlock
        mbarrier_arrive_expect(&full[stage], kBug == kExpectOneOperand ? sizeof(a[0]) : sizeof(a[0]) + sizeof(b[0]));  // BUG(kExpectOneOperand): mbarrier_misuse
        tma_load(a[stage], &map_a, i * kColumnsK, 0, &full[stage]);  // BUG(kReleaseInFlight): async_too_early | shared_race  // BUG(kEmptyCountTooLow): async_too_early | shared_race  // BUG(kNoFullWait): async_too_early | shared_race  // BUG(kExpectOneOperand): mbarrier_misuse | async_too_early | shared_race
        tma_load(b[stage], &map_b, i * kColumnsK, 0, &full[stage]);  // BUG(kReleaseInFlight): async_too_early | shared_race  // BUG(kEmptyCountTooLow): async_too_early | shared_race  // BUG(kNoFullWait): async_too_early | shared_race  // BUG(kExpectOneOperand): mbarrier_misuse | async_too_early | shared_race
        // clang-format on
      }
    }
  } else {
    float d[4] = {};
    wgmma_pin(d);
    int half = warp / 4;
    for (int i = 0; i < steps; ++i) {
      int stage = i % kStages, phase = i / kStages % 2;
      // clang-format off
      if (kBug != kNoFullWait) mbarrier_try_wait(&full[stage], phase);  // BUG(kEmptyCountTooLow): deadlock  // BUG(kExpectOneOperand): mbarrier_misuse | deadlock
      // clang-format on
      wgmma_fence();
      for (int inner = 0; inner < 4; ++inner) {
        uint64_t left = wgmma_descriptor(shared_address(&a[stage][half * 64 * kColumnsK]) + 32 * inner);
        uint64_t right = wgmma_descriptor(shared_address(b[stage]) + 32 * inner);
        // clang-format off
        wgmma(d, left, right);  // BUG(kReleaseInFlight): async_too_early | shared_race  // BUG(kEmptyCountTooLow): async_too_early | shared_race  // BUG(kNoFullWait): async_too_early | uninitialised_shared  // BUG(kExpectOneOperand): async_too_early | uninitialised_shared
        // clang-format on
      }
      wgmma_commit();
      wgmma_wait<1>();
      // The group before this one has read its stage.
      int released = kBug == kReleaseInFlight ? i : i - 1;
      if (lane == 0 && released >= 0) mbarrier_arrive(&empty[released % kStages]);
    }
    if (kBug != kStoreInFlight) wgmma_wait<0>();
    float* corner = out + (warp * 16 + lane / 4) * 8 + lane % 4 * 2;
    corner[0] = d[0];  // BUG(kStoreInFlight): async_too_early | wgmma_misuse
    corner[1] = d[1];  // BUG(kStoreInFlight): async_too_early | wgmma_misuse
    corner[64] = d[2];
    corner[65] = d[3];
    if (kBug == kStoreInFlight) wgmma_wait<0>();
  }
}
#define PLANT_GEMM(bug) \
  PLANT_VARIANT(gemm, bug, const __grid_constant__ CUtensorMap, const __grid_constant__ CUtensorMap, float*, int)
PLANT_GEMM(kSound);
PLANT_GEMM(kReleaseInFlight);
PLANT_GEMM(kEmptyCountTooLow);
PLANT_GEMM(kNoFullWait);
PLANT_GEMM(kStoreInFlight);
PLANT_GEMM(kExpectOneOperand);

// All warps of a warpgroup change their registers together.
template <bool kBug>
__global__ void __launch_bounds__(256, 1) setmaxnreg_by_some_warps(const int* in, int* out) {
  int tid = threadIdx.x;
  if (tid < 128) {
    if (!kBug || tid < 96)
      asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");  // BUG: divergent_collective | wgmma_misuse | deadlock
    out[tid] = in[tid] + 1;
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    out[tid] = in[tid] - 1;
  }
}
PLANT(setmaxnreg_by_some_warps, const int*, int*);
