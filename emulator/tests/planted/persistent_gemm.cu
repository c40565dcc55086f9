// A persistent kernel as real ones are: rows gathered with cp.async and weights by TMA meet on one mbarrier, a
// warpgroup multiplies, and its epilogue leaves by TMA. sm_90a.
#include "planted.cuh"

constexpr int kNoProxyFence = 1, kGatherNotCounted = 2, kArriveBeforeCopies = 3, kNoEmptyWait = 4,
              kReleaseBeforeWait = 5, kEpilogueNoFence = 6, kEpilogueNoBarrier = 7, kEpilogueNoReadWait = 8,
              kPhaseRestarts = 9;

constexpr int kK = 64, kStages = 2;

template <int kBug>
__global__ void __launch_bounds__(256)
    gather_gemm(const __nv_bfloat16* a, const int* row_of, const __grid_constant__ CUtensorMap map_b,
                const __grid_constant__ CUtensorMap map_out, int tiles, int k) {
  __shared__ alignas(1024) uint4 rows[kStages][64 * 8];
  __shared__ alignas(1024) uint4 columns[kStages][8 * 8];
  __shared__ alignas(128) float result[64 * 8];
  __shared__ uint64_t full[kStages], empty[kStages];
  int tid = threadIdx.x, warp = tid / 32, lane = tid % 32, steps = k / kK;
  if (tid == 0) {
    for (int stage = 0; stage < kStages; ++stage) {
      mbarrier_init(&full[stage], kBug == kGatherNotCounted ? 1 : 128 + 1);
      mbarrier_init(&empty[stage], 4);
    }
    fence_async_proxy();
  }
  __syncthreads();
  if (tid >= 128) {
    int thread = tid - 128, round = 0;
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
      for (int step = 0; step < steps; ++step, ++round) {
        int stage = round % kStages, phase = round / kStages % 2;
        if (kBug == kPhaseRestarts) phase = step / kStages % 2;
        // clang-format off
        if (kBug != kNoEmptyWait) mbarrier_try_wait(&empty[stage], phase ^ 1);  // BUG(kPhaseRestarts): deadlock  // BUG(kGatherNotCounted): deadlock
        for (int i = thread; i < 64 * 8; i += 128) {
          const __nv_bfloat16* source = a + static_cast<size_t>(row_of[tile * 64 + i / 8]) * k + step * kK + i % 8 * 8;
          copy_16(&rows[stage][i / 8 * 8 + ((i % 8) ^ (i / 8 % 8))], source);  // BUG(kGatherNotCounted): async_too_early | shared_race  // BUG(kArriveBeforeCopies): async_too_early | shared_race  // BUG(kNoEmptyWait): async_too_early | shared_race  // BUG(kReleaseBeforeWait): async_too_early | shared_race  // BUG(kPhaseRestarts): async_too_early | shared_race
        }
        if (kBug == kArriveBeforeCopies) mbarrier_arrive(&full[stage]);
        else if (kBug != kGatherNotCounted) copy_arrive_noinc(&full[stage]);  // BUG(kNoEmptyWait): mbarrier_misuse  // BUG(kPhaseRestarts): mbarrier_misuse
        if (thread == 0) {
          mbarrier_arrive_expect(&full[stage], sizeof(columns[0]));  // BUG(kNoEmptyWait): mbarrier_misuse  // BUG(kPhaseRestarts): mbarrier_misuse
          tma_load(columns[stage], &map_b, step * kK, 0, &full[stage]);  // BUG(kNoEmptyWait): async_too_early | shared_race  // BUG(kReleaseBeforeWait): async_too_early | shared_race  // BUG(kPhaseRestarts): async_too_early | shared_race  // BUG(kGatherNotCounted): async_too_early | shared_race
        }
        // clang-format on
      }
    }
    copy_wait<0>();
  } else {
    int round = 0;
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
      float d[4] = {};
      wgmma_pin(d);
      for (int step = 0; step < steps; ++step, ++round) {
        int stage = round % kStages, phase = round / kStages % 2;
        mbarrier_try_wait(&full[stage], phase);  // BUG(kPhaseRestarts): deadlock  // BUG(kNoEmptyWait): deadlock
        if (kBug != kNoProxyFence) fence_async_proxy();
        wgmma_fence();
        for (int inner = 0; inner < 4; ++inner) {
          uint64_t left = wgmma_descriptor(shared_address(rows[stage]) + 32 * inner);
          uint64_t right = wgmma_descriptor(shared_address(columns[stage]) + 32 * inner);
          // clang-format off
          wgmma(d, left, right);  // BUG(kNoProxyFence): missing_proxy_fence  // BUG(kGatherNotCounted): async_too_early | shared_race | uninitialised_shared | missing_proxy_fence  // BUG(kArriveBeforeCopies): async_too_early | shared_race | missing_proxy_fence  // BUG(kNoEmptyWait): async_too_early | shared_race | uninitialised_shared | missing_proxy_fence  // BUG(kReleaseBeforeWait): async_too_early | shared_race  // BUG(kPhaseRestarts): async_too_early | shared_race | uninitialised_shared | missing_proxy_fence
          // clang-format on
        }
        wgmma_commit();
        if (kBug == kReleaseBeforeWait && lane == 0) mbarrier_arrive(&empty[stage]);
        wgmma_wait<0>();
        if (kBug != kReleaseBeforeWait && lane == 0) mbarrier_arrive(&empty[stage]);
      }
      float* corner = result + (warp * 16 + lane / 4) * 8 + lane % 4 * 2;
      // The tile before this one has left.
      if (kBug != kEpilogueNoReadWait && tid == 0) bulk_wait_read<0>();
      barrier_sync(1, 128);
      // clang-format off
      corner[0] = d[0];  // BUG(kEpilogueNoReadWait): async_too_early  // BUG(kEpilogueNoBarrier): shared_race | async_too_early
      corner[1] = d[1];  // BUG(kEpilogueNoReadWait): async_too_early  // BUG(kEpilogueNoBarrier): shared_race | async_too_early
      corner[64] = d[2];  // BUG(kEpilogueNoReadWait): async_too_early  // BUG(kEpilogueNoBarrier): shared_race | async_too_early
      corner[65] = d[3];  // BUG(kEpilogueNoReadWait): async_too_early  // BUG(kEpilogueNoBarrier): shared_race | async_too_early
      if (kBug != kEpilogueNoFence) fence_async_proxy();
      if (kBug != kEpilogueNoBarrier) barrier_sync(1, 128);
      if (tid == 0) {
        tma_store(&map_out, result, 0, tile * 64);  // BUG(kEpilogueNoFence): missing_proxy_fence  // BUG(kEpilogueNoBarrier): shared_race | uninitialised_shared | missing_proxy_fence
        bulk_commit();
      }
      // clang-format on
    }
    if (tid == 0) bulk_wait_read<0>();
  }
}
#define PLANT_GATHER_GEMM(bug)                                                                           \
  PLANT_VARIANT(gather_gemm, bug, const __nv_bfloat16*, const int*, const __grid_constant__ CUtensorMap, \
                const __grid_constant__ CUtensorMap, int, int)
PLANT_GATHER_GEMM(kSound);
PLANT_GATHER_GEMM(kNoProxyFence);
PLANT_GATHER_GEMM(kGatherNotCounted);
PLANT_GATHER_GEMM(kArriveBeforeCopies);
PLANT_GATHER_GEMM(kNoEmptyWait);
PLANT_GATHER_GEMM(kReleaseBeforeWait);
PLANT_GATHER_GEMM(kEpilogueNoFence);
PLANT_GATHER_GEMM(kEpilogueNoBarrier);
PLANT_GATHER_GEMM(kEpilogueNoReadWait);
PLANT_GATHER_GEMM(kPhaseRestarts);
