// Bulk copies and TMA: descriptors, sizes, waiting, the two proxies. sm_90a.
#include "planted.cuh"

// Most tiles are 8 rows of 32 ints.
constexpr int kRows = 8, kColumns = 32, kTileBytes = kRows * kColumns * 4;

template <bool kBug>
__global__ void bulk_load_not_awaited(const int* in, int* out) {
  __shared__ alignas(16) int tile[256];
  __shared__ uint64_t full;
  int tid = threadIdx.x;
  if (tid == 0) {
    mbarrier_init(&full, 1);
    fence_async_proxy();
  }
  __syncthreads();
  if (tid == 0) {
    mbarrier_arrive_expect(&full, 1024);
    bulk_load(tile, in, 1024, &full);
  }
  if (!kBug) mbarrier_try_wait(&full, 0);
  out[tid] = tile[tid] + tile[255 - tid];  // BUG: async_too_early | uninitialised_shared
}
PLANT(bulk_load_not_awaited, const int*, int*);

// Sizes are whole multiples of 16 bytes.
template <bool kBug>
__global__ void bulk_bad_size(const int* in, int* out, uint32_t bytes) {
  __shared__ alignas(16) int tile[64];
  __shared__ uint64_t full;
  int tid = threadIdx.x;
  if (tid == 0) {
    mbarrier_init(&full, 1);
    fence_async_proxy();
  }
  __syncthreads();
  if (kBug) bytes -= 4;
  if (tid == 0) {
    mbarrier_arrive_expect(&full, bytes);
    bulk_load(tile, in, bytes, &full);  // BUG: bad_argument
  }
  mbarrier_try_wait(&full, 0);
  if (tid < bytes / 4) out[tid] = tile[tid];
}
PLANT(bulk_bad_size, const int*, int*, uint32_t);

template <bool kBug>
__global__ void bulk_misaligned(const int* in, int* out) {
  __shared__ alignas(16) int tile[64];
  __shared__ uint64_t full;
  int tid = threadIdx.x;
  if (tid == 0) {
    mbarrier_init(&full, 1);
    fence_async_proxy();
  }
  __syncthreads();
  if (tid == 0) {
    mbarrier_arrive_expect(&full, 256);
    bulk_load(tile, in + (kBug ? 2 : 4), 256, &full);  // BUG: misaligned
  }
  mbarrier_try_wait(&full, 0);
  out[tid] = tile[tid];
}
PLANT(bulk_misaligned, const int*, int*);

template <bool kBug>
__global__ void bulk_past_end(const int* in, int* out, int n) {
  __shared__ alignas(16) int tile[64];
  __shared__ uint64_t full;
  int tid = threadIdx.x, first = blockIdx.x * 64;
  if (tid == 0) {
    mbarrier_init(&full, 1);
    fence_async_proxy();
  }
  __syncthreads();
  int count = kBug ? 64 : min(64, n - first);
  if (tid == 0) {
    mbarrier_arrive_expect(&full, 4 * count);
    bulk_load(tile, in + first, 4 * count, &full);  // BUG: out_of_bounds
  }
  mbarrier_try_wait(&full, 0);
  if (first + tid < n) out[first + tid] = tile[tid];
}
PLANT(bulk_past_end, const int*, int*, int);

// Blocks add into one row; the bug's second block stores instead.
template <bool kBug>
__global__ void bulk_store_among_adds(const int* in, int* out) {
  __shared__ alignas(16) int tile[64];
  int tid = threadIdx.x;
  tile[tid] = in[blockIdx.x * 64 + tid];
  fence_async_proxy();
  __syncthreads();
  if (tid == 0) {
    if (kBug && blockIdx.x == 1) {
      bulk_store(out, tile, 256);  // BUG: global_race
    } else {
      bulk_add_s32(out, tile, 256);  // BUG: global_race
    }
    bulk_commit();
    bulk_wait<0>();
  }
}
PLANT(bulk_store_among_adds, const int*, int*);

// One tile in; the target is 128-byte aligned only where it should be.
template <bool kBug>
__global__ void tma_misaligned_target(const __grid_constant__ CUtensorMap map, int* out) {
  __shared__ alignas(128) unsigned char memory[kTileBytes + 64];
  __shared__ uint64_t full;
  int tid = threadIdx.x;
  int* tile = reinterpret_cast<int*>(memory + (kBug ? 64 : 0));
  if (tid == 0) {
    mbarrier_init(&full, 1);
    fence_async_proxy();
  }
  __syncthreads();
  if (tid == 0) {
    mbarrier_arrive_expect(&full, kTileBytes);
    tma_load(tile, &map, 0, 0, &full);  // BUG: misaligned
  }
  mbarrier_try_wait(&full, 0);
  out[tid] = tile[tid];
}
PLANT(tma_misaligned_target, const __grid_constant__ CUtensorMap, int*);

// Half of the tile has no room.
template <bool kBug>
__global__ void tma_target_past_end(const __grid_constant__ CUtensorMap map, int* out) {
  extern __shared__ __align__(128) int tile[];
  __shared__ uint64_t full;
  int tid = threadIdx.x;
  if (tid == 0) {
    mbarrier_init(&full, 1);
    fence_async_proxy();
  }
  __syncthreads();
  if (tid == 0) {
    mbarrier_arrive_expect(&full, kTileBytes);
    tma_load(tile, &map, 0, 0, &full);  // BUG: out_of_bounds
  }
  mbarrier_try_wait(&full, 0);
  out[tid] = tile[tid];
}
PLANT(tma_target_past_end, const __grid_constant__ CUtensorMap, int*);

// The host's descriptor says more rows than the array has.
template <bool kBug>
__global__ void tma_source_past_end(const __grid_constant__ CUtensorMap map, int* out) {
  __shared__ alignas(128) int tile[kRows * kColumns];
  __shared__ uint64_t full;
  int tid = threadIdx.x;
  if (tid == 0) {
    mbarrier_init(&full, 1);
    fence_async_proxy();
  }
  __syncthreads();
  if (tid == 0) {
    mbarrier_arrive_expect(&full, kTileBytes);
    tma_load(tile, &map, 0, blockIdx.x * kRows, &full);  // BUG: out_of_bounds
  }
  mbarrier_try_wait(&full, 0);
  out[blockIdx.x * kRows * kColumns + tid] = tile[tid];
}
PLANT(tma_source_past_end, const __grid_constant__ CUtensorMap, int*);

// The host's descriptor has two dimensions.
template <bool kBug>
__global__ void tma_wrong_rank(const __grid_constant__ CUtensorMap map, int* out) {
  __shared__ alignas(128) int tile[kRows * kColumns];
  __shared__ uint64_t full;
  int tid = threadIdx.x;
  if (tid == 0) {
    mbarrier_init(&full, 1);
    fence_async_proxy();
  }
  __syncthreads();
  if (tid == 0) {
    mbarrier_arrive_expect(&full, kTileBytes);
    if (kBug) {
      tma_load_3d(tile, &map, 0, 8, 0, &full);  // BUG: bad_descriptor
    } else {
      tma_load(tile, &map, 0, 8, &full);
    }
  }
  mbarrier_try_wait(&full, 0);
  out[tid] = tile[tid];
}
PLANT(tma_wrong_rank, const __grid_constant__ CUtensorMap, int*);

// The host passes 128 bytes that are no descriptor.
template <bool kBug>
__global__ void tma_no_descriptor(const __grid_constant__ CUtensorMap map, int* out) {
  __shared__ alignas(128) int tile[kRows * kColumns];
  __shared__ uint64_t full;
  int tid = threadIdx.x;
  if (tid == 0) {
    mbarrier_init(&full, 1);
    fence_async_proxy();
  }
  __syncthreads();
  if (tid == 0) {
    mbarrier_arrive_expect(&full, kTileBytes);
    tma_load(tile, &map, 0, 0, &full);  // BUG: bad_descriptor
  }
  mbarrier_try_wait(&full, 0);
  out[tid] = tile[tid];
}
PLANT(tma_no_descriptor, const __grid_constant__ CUtensorMap, int*);

// Reads with the 128-byte swizzle; the bug's descriptor is without.
template <bool kBug>
__global__ void tma_swizzle_forgotten(const __grid_constant__ CUtensorMap map, int* out) {
  __shared__ alignas(1024) int tile[kRows * kColumns];
  __shared__ uint64_t full;
  int tid = threadIdx.x, row = tid / kColumns, column = tid % kColumns;
  if (tid == 0) {
    mbarrier_init(&full, 1);
    fence_async_proxy();
  }
  __syncthreads();
  if (tid == 0) {
    mbarrier_arrive_expect(&full, kTileBytes);
    tma_load(tile, &map, 0, 0, &full);
  }
  mbarrier_try_wait(&full, 0);
  out[tid] = tile[row * kColumns + ((column / 4) ^ row) * 4 + column % 4];  // BUG: wrong_result
}
PLANT(tma_swizzle_forgotten, const __grid_constant__ CUtensorMap, int*);

// The innermost dimension comes first.
template <bool kBug>
__global__ void tma_coordinates_swapped(const __grid_constant__ CUtensorMap map, int* out) {
  __shared__ alignas(128) int tile[kRows * kColumns];
  __shared__ uint64_t full;
  int tid = threadIdx.x, x = blockIdx.x * kColumns, y = blockIdx.y * kRows;
  if (tid == 0) {
    mbarrier_init(&full, 1);
    fence_async_proxy();
  }
  __syncthreads();
  if (tid == 0) {
    mbarrier_arrive_expect(&full, kTileBytes);
    tma_load(tile, &map, kBug ? y : x, kBug ? x : y, &full);  // BUG: wrong_result
  }
  mbarrier_try_wait(&full, 0);
  out[(y + tid / kColumns) * gridDim.x * kColumns + x + tid % kColumns] = tile[tid];
}
PLANT(tma_coordinates_swapped, const __grid_constant__ CUtensorMap, int*);

// Ordinary stores, then TMA: another proxy.
template <bool kBug>
__global__ void tma_store_without_proxy_fence(const int* in, const __grid_constant__ CUtensorMap map) {
  __shared__ alignas(128) int tile[kRows * kColumns];
  int tid = threadIdx.x;
  tile[tid] = in[tid];
  if (!kBug) fence_async_proxy();
  __syncthreads();
  if (tid == 0) {
    tma_store(&map, tile, 0, 0);  // BUG: missing_proxy_fence
    bulk_commit();
    bulk_wait_read<0>();
  }
}
PLANT(tma_store_without_proxy_fence, const int*, const __grid_constant__ CUtensorMap);

// The barrier before the store is missing: other threads still write the tile.
template <bool kBug>
__global__ void tma_store_without_barrier(const int* in, const __grid_constant__ CUtensorMap map) {
  __shared__ alignas(128) int tile[kRows * kColumns];
  int tid = threadIdx.x;
  tile[tid] = 0;
  fence_async_proxy();
  __syncthreads();
  tile[tid] = in[tid];  // BUG: shared_race | async_too_early
  fence_async_proxy();
  if (!kBug) __syncthreads();
  if (tid == 0) {
    tma_store(&map, tile, 0, 0);  // BUG: shared_race | missing_proxy_fence
    bulk_commit();
    bulk_wait_read<0>();
  }
}
PLANT(tma_store_without_barrier, const int*, const __grid_constant__ CUtensorMap);

template <bool kBug>
__global__ void tma_store_source_rewritten(const int* in, const __grid_constant__ CUtensorMap map) {
  __shared__ alignas(128) int tile[kRows * kColumns];
  int tid = threadIdx.x;
  for (int i = 0; i < 3; ++i) {
    tile[tid] = in[i * kRows * kColumns + tid];  // BUG: async_too_early
    fence_async_proxy();
    __syncthreads();
    if (tid == 0) {
      tma_store(&map, tile, 0, i * kRows);
      bulk_commit();
      if (!kBug || i == 2) bulk_wait_read<0>();
    }
    __syncthreads();
  }
}
PLANT(tma_store_source_rewritten, const int*, const __grid_constant__ CUtensorMap);

// The block's shared memory goes to another block while the store still reads it.
template <bool kBug>
__global__ void tma_store_pending_at_exit(const int* in, const __grid_constant__ CUtensorMap map) {
  __shared__ alignas(128) int tile[kRows * kColumns];
  int tid = threadIdx.x;
  tile[tid] = in[blockIdx.x * kRows * kColumns + tid];
  fence_async_proxy();
  __syncthreads();
  if (tid == 0) {
    tma_store(&map, tile, 0, blockIdx.x * kRows);  // BUG: async_not_awaited
    bulk_commit();
    if (!kBug) bulk_wait_read<0>();
  }
}  // BUG: async_not_awaited
PLANT(tma_store_pending_at_exit, const int*, const __grid_constant__ CUtensorMap);

// Groups belong to the thread that committed them: another one waits for nothing.
template <bool kBug>
__global__ void tma_store_waited_by_another(const int* in, const __grid_constant__ CUtensorMap map) {
  __shared__ alignas(128) int tile[kRows * kColumns];
  int tid = threadIdx.x;
  for (int i = 0; i < 3; ++i) {
    tile[tid] = in[i * kRows * kColumns + tid];  // BUG: async_too_early
    fence_async_proxy();
    __syncthreads();
    if (tid == 0) {
      tma_store(&map, tile, 0, i * kRows);  // BUG: async_not_awaited
      bulk_commit();
    }
    if (tid == (kBug ? 32 : 0)) bulk_wait_read<0>();
    __syncthreads();
  }
}  // BUG: async_not_awaited
PLANT(tma_store_waited_by_another, const int*, const __grid_constant__ CUtensorMap);

template <bool kBug>
__global__ void tma_store_not_committed(const int* in, const __grid_constant__ CUtensorMap map) {
  __shared__ alignas(128) int tile[kRows * kColumns];
  int tid = threadIdx.x;
  for (int i = 0; i < 3; ++i) {
    tile[tid] = in[i * kRows * kColumns + tid];  // BUG: async_too_early
    fence_async_proxy();
    __syncthreads();
    if (tid == 0) {
      tma_store(&map, tile, 0, i * kRows);
      if (!kBug || i == 2) bulk_commit();
      bulk_wait_read<0>();
    }
    __syncthreads();
  }
}
PLANT(tma_store_not_committed, const int*, const __grid_constant__ CUtensorMap);

// A transposed matrix leaves the registers; other lanes read it.
template <bool kBug>
__global__ void stmatrix_without_sync(const uint32_t* in, uint32_t* out) {
  __shared__ alignas(16) uint32_t tile[16 * 4];
  int lane = threadIdx.x;
  for (int i = lane; i < 64; i += 32) tile[i] = 0;
  __syncwarp();
  store_matrix_x2(tile + lane % 16 * 4, in[lane], in[lane + 32]);  // BUG: shared_race
  if (!kBug) __syncwarp();
  out[lane] = tile[lane ^ 21];             // BUG: shared_race
  out[lane + 32] = tile[32 + (lane ^ 7)];  // BUG: shared_race
}
PLANT(stmatrix_without_sync, const uint32_t*, uint32_t*);

// wait_group.read says that the source was read, not that the target was written.
template <bool kBug>
__global__ void tma_store_read_back(const int* in, const __grid_constant__ CUtensorMap map, const int* stored,
                                    int* out) {
  __shared__ alignas(128) int tile[kRows * kColumns];
  int tid = threadIdx.x;
  tile[tid] = in[tid];
  fence_async_proxy();
  __syncthreads();
  if (tid == 0) {
    tma_store(&map, tile, 0, 0);
    bulk_commit();
    if (kBug) {
      bulk_wait_read<0>();
    } else {
      bulk_wait<0>();
    }
    int sum = 0;
    for (int i = 0; i < kColumns; ++i) sum += stored[i];  // BUG: async_too_early
    out[0] = sum;
  }
}
PLANT(tma_store_read_back, const int*, const __grid_constant__ CUtensorMap, const int*, int*);

// The fence comes before the stores that it is for.
template <bool kBug>
__global__ void tma_store_fence_too_early(const int* in, const __grid_constant__ CUtensorMap map) {
  __shared__ alignas(128) int tile[kRows * kColumns];
  int tid = threadIdx.x;
  if (kBug) fence_async_proxy();
  tile[tid] = in[tid];
  if (!kBug) fence_async_proxy();
  __syncthreads();
  if (tid == 0) {
    tma_store(&map, tile, 0, 0);  // BUG: missing_proxy_fence
    bulk_commit();
    bulk_wait_read<0>();
  }
}
PLANT(tma_store_fence_too_early, const int*, const __grid_constant__ CUtensorMap);

// Before the barrier, a thread's fence is for its own stores only.
template <bool kBug>
__global__ void tma_store_fence_by_one(const int* in, const __grid_constant__ CUtensorMap map) {
  __shared__ alignas(128) int tile[kRows * kColumns];
  int tid = threadIdx.x;
  tile[tid] = in[tid];
  if (!kBug || tid < 32) fence_async_proxy();
  __syncthreads();
  if (tid == 0) {
    tma_store(&map, tile, 0, 0);  // BUG: missing_proxy_fence
    bulk_commit();
    bulk_wait_read<0>();
  }
}
PLANT(tma_store_fence_by_one, const int*, const __grid_constant__ CUtensorMap);

// Two buffers, one store in flight; the bug lets two.
template <bool kBug>
__global__ void tma_store_two_buffers(const int* in, const __grid_constant__ CUtensorMap map, int tiles) {
  __shared__ alignas(128) int tile[2][kRows * kColumns];
  int tid = threadIdx.x;
  for (int i = 0; i < tiles; ++i) {
    if (tid == 0) bulk_wait_read<kBug ? 2 : 1>();
    __syncthreads();
    tile[i % 2][tid] = in[i * kRows * kColumns + tid] + i;  // BUG: async_too_early
    fence_async_proxy();
    __syncthreads();
    if (tid == 0) {
      tma_store(&map, tile[i % 2], 0, i * kRows);
      bulk_commit();
    }
  }
  if (tid == 0) bulk_wait_read<0>();
}
PLANT(tma_store_two_buffers, const int*, const __grid_constant__ CUtensorMap, int);

// A buffer that ordinary stores cleared is loaded by TMA: the fence orders writes of two proxies too.
template <bool kBug>
__global__ void tma_load_over_stores(const __grid_constant__ CUtensorMap map, int* out) {
  __shared__ alignas(128) int tile[kRows * kColumns];
  __shared__ uint64_t full;
  int tid = threadIdx.x;
  if (tid == 0) {
    mbarrier_init(&full, 1);
    fence_async_proxy();
  }
  tile[tid] = -1;
  if (!kBug) fence_async_proxy();
  __syncthreads();
  if (tid == 0) {
    mbarrier_arrive_expect(&full, kTileBytes);
    tma_load(tile, &map, 0, 0, &full);  // BUG: missing_proxy_fence
  }
  mbarrier_try_wait(&full, 0);
  out[tid] = tile[tid];
}
PLANT(tma_load_over_stores, const __grid_constant__ CUtensorMap, int*);

// A map in global memory is pointed at another tensor before it is used.
template <bool kBug>
__global__ void tensor_map_without_acquire(CUtensorMap* map, const int* other, int* out) {
  __shared__ alignas(128) int tile[kRows * kColumns];
  __shared__ uint64_t full;
  int tid = threadIdx.x;
  if (tid == 0) {
    mbarrier_init(&full, 1);
    fence_async_proxy();
    tensor_map_set_address(map, other);
    tensor_map_release();
  }
  __syncthreads();
  if (tid == 0) {
    if (!kBug) tensor_map_acquire(map);
    mbarrier_arrive_expect(&full, kTileBytes);
    tma_load(tile, map, 0, 0, &full);  // BUG: missing_proxy_fence
  }
  mbarrier_try_wait(&full, 0);
  out[tid] = tile[tid];
}
PLANT(tensor_map_without_acquire, CUtensorMap*, const int*, int*);

// A producer warp and four consumer warps around a ring of three stages.
constexpr int kSkipFullWait = 1, kSkipEmptyWait = 2, kWrongFullParity = 3, kExpectTooLittle = 4, kExpectTooMuch = 5,
              kNoExpect = 6, kLaneZeroWaits = 7, kEmptyCountTooHigh = 8, kEmptyCountTooLow = 9,
              kReleaseBeforeReading = 10, kPhaseNotFlipped = 11, kTryOnce = 12, kWrongStage = 13, kAllLanesIssue = 14;

template <int kBug>
__global__ void __launch_bounds__(160) pipeline(const __grid_constant__ CUtensorMap map, int* out, int rounds) {
  constexpr int kStages = 3;
  __shared__ alignas(128) int tile[kStages][kRows * kColumns];
  __shared__ uint64_t full[kStages], empty[kStages];
  int tid = threadIdx.x, lane = tid % 32;
  if (tid == 0) {
    for (int stage = 0; stage < kStages; ++stage) {
      mbarrier_init(&full[stage], 1);
      mbarrier_init(&empty[stage], kBug == kEmptyCountTooHigh ? 5 : kBug == kEmptyCountTooLow ? 1 : 4);
    }
    fence_async_proxy();
  }
  __syncthreads();
  if (tid >= 128) {
    if (lane == 0 || kBug == kAllLanesIssue) {
      constexpr int kExpected = kTileBytes + (kBug == kExpectTooLittle ? -512 : kBug == kExpectTooMuch ? 512 : 0);
      for (int i = 0; i < rounds; ++i) {
        int stage = i % kStages, phase = i / kStages % 2;
        // clang-format off
        if (kBug != kSkipEmptyWait) mbarrier_try_wait(&empty[stage], phase ^ 1);  // BUG(kWrongStage): deadlock  // BUG(kEmptyCountTooHigh): deadlock  // BUG(kEmptyCountTooLow): deadlock  // BUG(kExpectTooLittle): deadlock  // BUG(kExpectTooMuch): deadlock  // BUG(kSkipFullWait): deadlock  // BUG(kPhaseNotFlipped): deadlock
        if (kBug == kNoExpect) mbarrier_arrive(&full[stage]);  // BUG(kNoExpect): mbarrier_misuse
        else mbarrier_arrive_expect(&full[stage], kExpected);  // BUG(kAllLanesIssue): mbarrier_misuse  // BUG(kSkipEmptyWait): mbarrier_misuse  // BUG(kExpectTooLittle): mbarrier_misuse
        tma_load(tile[stage], &map, 0, i * kRows, &full[stage]);  // BUG(kWrongStage): shared_race | async_too_early  // BUG(kAllLanesIssue): async_too_early | mbarrier_misuse  // BUG(kSkipEmptyWait): shared_race | async_too_early  // BUG(kReleaseBeforeReading): shared_race | async_too_early  // BUG(kEmptyCountTooLow): shared_race | async_too_early  // BUG(kNoExpect): mbarrier_misuse  // BUG(kExpectTooLittle): mbarrier_misuse | shared_race | async_too_early  // BUG(kSkipFullWait): shared_race | async_too_early  // BUG(kWrongFullParity): shared_race | async_too_early  // BUG(kPhaseNotFlipped): shared_race | async_too_early  // BUG(kTryOnce): shared_race | async_too_early
        // clang-format on
      }
    }
  } else {
    int sum = 0;
    for (int i = 0; i < rounds; ++i) {
      int stage = i % kStages, phase = i / kStages % 2;
      if (kBug == kWrongFullParity) phase ^= 1;
      if (kBug == kPhaseNotFlipped) phase = 0;
      // clang-format off
      if (kBug == kTryOnce) mbarrier_try_once(&full[stage], phase);
      else if (kBug != kSkipFullWait && (kBug != kLaneZeroWaits || lane == 0)) mbarrier_try_wait(&full[(stage + (kBug == kWrongStage)) % kStages], phase);  // BUG(kWrongStage): deadlock  // BUG(kExpectTooLittle): mbarrier_misuse | deadlock  // BUG(kExpectTooMuch): deadlock  // BUG(kEmptyCountTooHigh): deadlock  // BUG(kNoExpect): deadlock  // BUG(kSkipEmptyWait): deadlock  // BUG(kEmptyCountTooLow): deadlock  // BUG(kWrongFullParity): deadlock  // BUG(kPhaseNotFlipped): deadlock
      if (kBug == kReleaseBeforeReading && lane == 0) mbarrier_arrive(&empty[stage]);
      sum += (i + 1) * (tile[stage][tid] - tile[stage][255 - tid]);  // BUG(kSkipFullWait): async_too_early | uninitialised_shared  // BUG(kSkipEmptyWait): async_too_early | shared_race  // BUG(kWrongFullParity): async_too_early | uninitialised_shared  // BUG(kExpectTooLittle): async_too_early  // BUG(kNoExpect): async_too_early | uninitialised_shared  // BUG(kLaneZeroWaits): async_too_early | shared_race | uninitialised_shared  // BUG(kReleaseBeforeReading): async_too_early | shared_race  // BUG(kEmptyCountTooLow): async_too_early | shared_race  // BUG(kPhaseNotFlipped): async_too_early | shared_race  // BUG(kTryOnce): async_too_early | uninitialised_shared  // BUG(kWrongStage): async_too_early | uninitialised_shared | shared_race
      // clang-format on
      __syncwarp();
      if (kBug != kReleaseBeforeReading && lane == 0) mbarrier_arrive(&empty[stage]);
    }
    out[tid] = sum;
  }
}
#define PLANT_PIPELINE(bug) PLANT_VARIANT(pipeline, bug, const __grid_constant__ CUtensorMap, int*, int)
PLANT_PIPELINE(kSound);
PLANT_PIPELINE(kSkipFullWait);
PLANT_PIPELINE(kSkipEmptyWait);
PLANT_PIPELINE(kWrongFullParity);
PLANT_PIPELINE(kExpectTooLittle);
PLANT_PIPELINE(kExpectTooMuch);
PLANT_PIPELINE(kNoExpect);
PLANT_PIPELINE(kLaneZeroWaits);
PLANT_PIPELINE(kEmptyCountTooHigh);
PLANT_PIPELINE(kEmptyCountTooLow);
PLANT_PIPELINE(kReleaseBeforeReading);
PLANT_PIPELINE(kPhaseNotFlipped);
PLANT_PIPELINE(kTryOnce);
PLANT_PIPELINE(kWrongStage);
PLANT_PIPELINE(kAllLanesIssue);
