// Within a warp: shuffles, votes, masks, lanes that meet or do not, matrices. sm_80.
#include <cooperative_groups.h>
#include <cooperative_groups/reduce.h>

#include "planted.cuh"

constexpr unsigned kAll = 0xFFFFFFFFu;

// Lanes exchange through shared memory; each warp has its own part.
template <bool kBug>
__global__ void transpose_without_syncwarp(const int* in, int* out) {
  __shared__ int tile[4][32];
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  for (int i = 0; i < 3; ++i) {
    tile[warp][lane] = in[i * 128 + threadIdx.x];  // BUG: shared_race
    if (!kBug) __syncwarp();
    out[i * 128 + threadIdx.x] = tile[warp][(lane * 4 + lane / 8) % 32];  // BUG: shared_race
    __syncwarp();
  }
}
PLANT(transpose_without_syncwarp, const int*, int*);

// "Warp-synchronous" code as it was written before lanes had their own progress.
template <bool kBug>
__global__ void warp_synchronous_reduction(const int* in, int* out) {
  __shared__ int partial[64];
  int tid = threadIdx.x;
  partial[tid] = in[tid];
  partial[tid + 32] = in[tid + 32];
  __syncwarp();
  for (int step = 32; step > 0; step /= 2) {
    int other = partial[tid + step];  // BUG: shared_race
    if (!kBug) __syncwarp();
    if (tid < step) partial[tid] += other;  // BUG: shared_race
    if (!kBug) __syncwarp();
  }
  if (tid == 0) out[0] = partial[0];
}
PLANT(warp_synchronous_reduction, const int*, int*);

// The same with volatile, as the books had it: no data race by the letter, and no order either.
template <bool kBug>
__global__ void volatile_warp_reduction(const int* in, int* out) {
  __shared__ volatile int partial[64];
  int tid = threadIdx.x;
  partial[tid] = in[blockIdx.x * 64 + tid];
  partial[tid + 32] = in[blockIdx.x * 64 + tid + 32];
  __syncwarp();
  for (int step = 32; step > 0; step /= 2) {
    int other = partial[tid + step];  // BUG: shared_race | wrong_result
    if (!kBug) __syncwarp();
    if (tid < step) partial[tid] = partial[tid] + other;  // BUG: shared_race | wrong_result
    if (!kBug) __syncwarp();
  }
  if (tid == 0) out[blockIdx.x] = partial[0];
}
PLANT(volatile_warp_reduction, const int*, int*);

template <bool kBug>
__global__ void shuffle_in_a_branch(const int* in, int* out) {
  int value = in[threadIdx.x], lane = threadIdx.x % 32;
  if (lane < 16) {
    value += __shfl_xor_sync(kBug ? kAll : 0xFFFFu, value, 1);  // BUG: divergent_collective
  }
  value -= __shfl_xor_sync(kAll, value, 16);  // BUG: divergent_collective
  out[threadIdx.x] = value;
}
PLANT(shuffle_in_a_branch, const int*, int*);

// Half the warp has left the loop that the others still vote in.
template <bool kBug>
__global__ void ballot_after_some_left(const int* in, int* out) {
  int rounds = in[threadIdx.x], count = 0;
  if (kBug) {
    for (int i = 0; i < rounds; ++i) count += __popc(__ballot_sync(kAll, i < rounds));  // BUG: divergent_collective
  } else {
    for (int i = 0; __any_sync(kAll, i < rounds); ++i) {
      int active = __popc(__ballot_sync(kAll, i < rounds));
      if (i < rounds) count += active;
    }
  }
  out[threadIdx.x] = count;
}
PLANT(ballot_after_some_left, const int*, int*);

// A lane that executes a shuffle must be in the mask.
template <bool kBug>
__global__ void shuffle_not_in_mask(const int* in, int* out) {
  int value = in[threadIdx.x];
  value += __shfl_xor_sync(kBug ? 0x0000FFFFu : kAll, value, 2);  // BUG: bad_argument
  out[threadIdx.x] = value;
}
PLANT(shuffle_not_in_mask, const int*, int*);

// The lane read from takes no part: its register's value is undefined.
template <bool kBug>
__global__ void shuffle_from_inactive_lane(const int* in, int* out) {
  int value = in[threadIdx.x], lane = threadIdx.x % 32;
  if (lane < 16) {
    value +=
        __shfl_sync(0xFFFFu, value, kBug ? lane + 8 : (lane + 8) % 16);  // BUG: bad_argument | divergent_collective
  }
  out[threadIdx.x] = value;
}
PLANT(shuffle_from_inactive_lane, const int*, int*);

template <bool kBug>
__global__ void redux_wrong_mask(const int* in, int* out) {
  int value = in[threadIdx.x], lane = threadIdx.x % 32;
  if (lane >= 8) {
    value = __reduce_add_sync(kBug ? kAll : 0xFFFFFF00u, value);  // BUG: divergent_collective
  }
  value -= __reduce_max_sync(kAll, value);  // BUG: divergent_collective
  out[threadIdx.x] = value;
}
PLANT(redux_wrong_mask, const int*, int*);

// Each group of lanes with equal keys elects its first lane; the bug matches among all in a branch of some.
template <bool kBug>
__global__ void match_wrong_mask(const int* in, int* out, int n) {
  int lane = threadIdx.x % 32, elected = 0;
  unsigned active = __ballot_sync(kAll, lane < n);
  if (lane < n) {
    unsigned same = __match_any_sync(kBug ? kAll : active, in[lane]);  // BUG: divergent_collective
    elected = lane == __ffs(same) - 1;
    if (elected) out[in[lane]] = __popc(same);
  }
  int groups = __popc(__ballot_sync(kAll, elected));  // BUG: divergent_collective
  if (lane == 0) out[4] = groups;
}
PLANT(match_wrong_mask, const int*, int*, int);

template <bool kBug>
__global__ void syncwarp_not_in_mask(const int* in, int* out) {
  __shared__ int tile[32];
  tile[threadIdx.x] = in[threadIdx.x];
  __syncwarp(kBug ? 0x0000FFFFu : kAll);      // BUG: bad_argument
  out[threadIdx.x] = tile[31 - threadIdx.x];  // BUG: shared_race
}
PLANT(syncwarp_not_in_mask, const int*, int*);

// Some lanes wait for all, which left for good.
template <bool kBug>
__global__ void syncwarp_in_a_branch(const int* in, int* out) {
  __shared__ int tile[32];
  int lane = threadIdx.x;
  tile[lane] = in[lane];
  __syncwarp();
  int value = tile[31 - lane];
  if (kBug) {
    if (value > 0) {
      __syncwarp();  // BUG: deadlock | divergent_collective
      tile[lane] = value;
    } else {
      while (*const_cast<volatile int*>(&tile[31 - lane]) <= 0) {  // BUG: deadlock | shared_race
      }
    }
  } else {
    __syncwarp();
    if (value > 0) tile[lane] = value;
  }
  __syncwarp();
  out[lane] = tile[lane];
}
PLANT(syncwarp_in_a_branch, const int*, int*);

// A lock that the lanes of one warp take in turn: each must be able to go on while others spin.
template <bool kBug>
__global__ void lock_within_a_warp(const int* in, int* out) {
  __shared__ int lock, total;
  if (threadIdx.x == 0) lock = total = 0;
  __syncwarp();
  while (atomicCAS(&lock, 0, 1) != 0) {  // BUG: deadlock
  }
  __threadfence_block();
  if (kBug) __syncwarp();  // BUG: deadlock | divergent_collective
  total += in[threadIdx.x];
  __threadfence_block();
  atomicExch(&lock, 0);
  __syncwarp();
  if (threadIdx.x == 0) out[0] = total;
}
PLANT(lock_within_a_warp, const int*, int*);

// The lock without fences: it excludes, and orders nothing.
template <bool kBug>
__global__ void lock_without_fences(const int* in, int* out) {
  __shared__ int lock, total;
  if (threadIdx.x == 0) lock = total = 0;
  __syncthreads();
  if (threadIdx.x % 32 == 0) {
    while (atomicCAS(&lock, 0, 1) != 0) {
    }
    if (!kBug) __threadfence_block();
    total += in[threadIdx.x];  // BUG: shared_race
    if (!kBug) __threadfence_block();
    atomicExch(&lock, 0);
  }
  __syncthreads();
  if (threadIdx.x == 0) out[0] = total;
}
PLANT(lock_without_fences, const int*, int*);

// One 16 x 8 product.
template <bool kBug>
__global__ void ldmatrix_past_end(const __nv_bfloat16* a, const __nv_bfloat16* b, float* c) {
  __shared__ alignas(16) __nv_bfloat16 tile[24 * 16];
  int lane = threadIdx.x;
  for (int i = lane; i < 16 * 16; i += 32) tile[i] = a[i];
  for (int i = lane; i < 8 * 16; i += 32) tile[256 + i] = b[i];
  __syncwarp();
  uint32_t fragment_a[4], fragment_b[2];
  float sum[4] = {};
  load_matrix_x4(fragment_a, tile + lane % 16 * 16 + lane / 16 * 8);
  // The lanes from 16 on give addresses too, which are not used.
  load_matrix_x2(fragment_b, tile + 256 + (lane % 8 + (kBug ? 1 : 0)) * 16 + lane / 8 % 2 * 8);  // BUG: out_of_bounds
  mma(sum, fragment_a, fragment_b);
  for (int i = 0; i < 4; ++i) c[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = sum[i];
}
PLANT(ldmatrix_past_end, const __nv_bfloat16*, const __nv_bfloat16*, float*);

// Rows padded against bank conflicts, by too little.
template <bool kBug>
__global__ void ldmatrix_misaligned(const __nv_bfloat16* a, const __nv_bfloat16* b, float* c) {
  constexpr int kPitch = kBug ? 20 : 24;
  __shared__ alignas(16) __nv_bfloat16 tile[24 * kPitch];
  int lane = threadIdx.x;
  for (int i = lane; i < 24 * 16; i += 32) tile[i / 16 * kPitch + i % 16] = i < 256 ? a[i] : b[i - 256];
  __syncwarp();
  uint32_t fragment_a[4], fragment_b[2];
  float sum[4] = {};
  load_matrix_x4(fragment_a, tile + lane % 16 * kPitch + lane / 16 * 8);  // BUG: misaligned
  load_matrix_x2(fragment_b, tile + (16 + lane % 8) * kPitch + lane / 8 % 2 * 8);
  mma(sum, fragment_a, fragment_b);
  for (int i = 0; i < 4; ++i) c[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = sum[i];
}
PLANT(ldmatrix_misaligned, const __nv_bfloat16*, const __nv_bfloat16*, float*);

// ldmatrix reads rows that other lanes wrote.
template <bool kBug>
__global__ void ldmatrix_without_syncwarp(const __nv_bfloat16* a, const __nv_bfloat16* b, float* c) {
  __shared__ alignas(16) __nv_bfloat16 tile[24 * 24];
  int lane = threadIdx.x;
  for (int i = lane; i < 24 * 24; i += 32) tile[i] = __nv_bfloat16(0.0f);
  __syncwarp();
  for (int i = lane; i < 24 * 16; i += 32)
    tile[i / 16 * 24 + i % 16] = i < 256 ? a[i] : b[i - 256];  // BUG: shared_race
  if (!kBug) __syncwarp();
  uint32_t fragment_a[4], fragment_b[2];
  float sum[4] = {};
  load_matrix_x4(fragment_a, tile + lane % 16 * 24 + lane / 16 * 8);           // BUG: shared_race
  load_matrix_x2(fragment_b, tile + (16 + lane % 8) * 24 + lane / 8 % 2 * 8);  // BUG: shared_race
  mma(sum, fragment_a, fragment_b);
  for (int i = 0; i < 4; ++i) c[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = sum[i];
}
PLANT(ldmatrix_without_syncwarp, const __nv_bfloat16*, const __nv_bfloat16*, float*);

// mma belongs to a whole warp.
template <bool kBug>
__global__ void mma_in_a_branch(const uint32_t* a, const uint32_t* b, float* c) {
  int lane = threadIdx.x;
  const uint32_t fragment_a[4] = {a[lane], a[lane + 32], a[lane + 64], a[lane + 96]};
  const uint32_t fragment_b[2] = {b[lane], b[lane + 32]};
  float sum[4] = {};
  if (!kBug || fragment_b[0] != 0) mma(sum, fragment_a, fragment_b);  // BUG: divergent_collective
  for (int i = 0; i < 4; ++i) c[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = sum[i];
}
PLANT(mma_in_a_branch, const uint32_t*, const uint32_t*, float*);

// Tiles of eight lanes exchange through shared memory, each at its own pace.
template <bool kBug>
__global__ void tile_without_sync(const int* in, int* out) {
  namespace cg = cooperative_groups;
  __shared__ int rows[64];
  auto tile = cg::tiled_partition<8>(cg::this_thread_block());
  int first = threadIdx.x / 8 * 8, rank = tile.thread_rank(), rounds = first / 8 + 1;
  int value = in[threadIdx.x];
  for (int i = 0; i < rounds; ++i) {
    rows[first + rank] = value;  // BUG: shared_race
    if (!kBug) tile.sync();
    value += rows[first + (rank + 1) % 8];  // BUG: shared_race
    tile.sync();
  }
  out[threadIdx.x] = cg::reduce(tile, value, cg::plus<int>());
}
PLANT(tile_without_sync, const int*, int*);

// Lanes that happen to meet in a branch add up first, so that one of them does the atomic.
template <bool kBug>
__global__ void aggregated_atomics(const int* in, int* count, int* out) {
  namespace cg = cooperative_groups;
  int value = in[threadIdx.x];
  if (value > 0) {
    cg::coalesced_group active = cg::coalesced_threads();
    int base = 0;
    if (active.thread_rank() == 0) {
      if (kBug) {
        base = *count;                                    // BUG: global_race
        *count = base + static_cast<int>(active.size());  // BUG: global_race
      } else {
        base = atomicAdd(count, static_cast<int>(active.size()));
      }
    }
    base = active.shfl(base, 0);
    out[base + active.thread_rank()] = value;
  }
}
PLANT(aggregated_atomics, const int*, int*, int*);
