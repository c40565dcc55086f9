// Shared memory and the barriers of a block.
#include "planted.cuh"

// A read of what another thread wrote, with no barrier between.
template <bool kBug>
__global__ void reduction_without_barrier(const int* in, int* out) {
  __shared__ int partial[128];
  int tid = threadIdx.x;
  partial[tid] = in[blockIdx.x * 128 + tid];  // BUG: shared_race
  for (int step = 64; step > 0; step /= 2) {
    if (!kBug || step < 64) __syncthreads();
    if (tid < step) partial[tid] += partial[tid + step];  // BUG: shared_race | uninitialised_shared
  }
  if (tid == 0) out[blockIdx.x] = partial[0];
}
PLANT(reduction_without_barrier, const int*, int*);

// The same in the middle of the tree, where every byte has a value already.
template <bool kBug>
__global__ void reduction_skips_one_level(const int* in, int* out) {
  __shared__ int partial[256];
  int tid = threadIdx.x;
  partial[tid] = in[blockIdx.x * 256 + tid];
  for (int step = 128; step > 0; step /= 2) {
    if (!kBug || step != 64) __syncthreads();
    if (tid < step) partial[tid] += partial[tid + step];  // BUG: shared_race
  }
  if (tid == 0) out[blockIdx.x] = partial[0];
}
PLANT(reduction_skips_one_level, const int*, int*);

// A buffer overwritten while other threads still read it.
template <bool kBug>
__global__ void reuse_without_barrier(const int* in, int* out) {
  __shared__ int tile[128];
  int tid = threadIdx.x, sum = 0;
  for (int i = 0; i < 4; ++i) {
    tile[tid] = in[i * 128 + tid];  // BUG: shared_race
    __syncthreads();
    sum += tile[127 - tid];  // BUG: shared_race
    if (!kBug) __syncthreads();
  }
  out[tid] = sum;
}
PLANT(reuse_without_barrier, const int*, int*);

// One barrier a round is enough with two buffers, not with one.
template <bool kBug>
__global__ void double_buffer(const int* in, int* out) {
  __shared__ int tile[2][128];
  int tid = threadIdx.x, sum = 0;
  for (int i = 0; i < 8; ++i) {
    int buffer = kBug ? 0 : i % 2;
    tile[buffer][tid] = in[i * 128 + tid];  // BUG: shared_race
    __syncthreads();
    sum += (i + 1) * tile[buffer][(tid + 37) % 128];  // BUG: shared_race
  }
  out[tid] = sum;
}
PLANT(double_buffer, const int*, int*);

template <bool kBug>
__global__ void two_writers(const int* in, int* out) {
  __shared__ int first;
  int tid = threadIdx.x;
  if (tid % (kBug ? 32 : 128) == 0) first = in[tid];  // BUG: shared_race
  __syncthreads();
  out[tid] = first;
}
PLANT(two_writers, const int*, int*);

template <bool kBug>
__global__ void histogram_without_atomics(const int* in, int* out) {
  __shared__ int bins[16];
  int tid = threadIdx.x;
  if (tid < 16) bins[tid] = 0;
  __syncthreads();
  if (kBug) {
    bins[in[tid]] += 1;  // BUG: shared_race
  } else {
    atomicAdd(&bins[in[tid]], 1);
  }
  __syncthreads();
  if (tid < 16) out[tid] = bins[tid];
}
PLANT(histogram_without_atomics, const int*, int*);

// Atomics do not race with each other; a plain read needs a barrier all the same.
template <bool kBug>
__global__ void histogram_read_early(const int* in, int* out) {
  __shared__ int bins[16];
  int tid = threadIdx.x;
  if (tid < 16) bins[tid] = 0;
  __syncthreads();
  atomicAdd(&bins[in[blockIdx.x * 128 + tid]], 1);  // BUG: shared_race
  if (!kBug) __syncthreads();
  if (tid < 16) atomicAdd(&out[tid], bins[tid]);  // BUG: shared_race
}
PLANT(histogram_read_early, const int*, int*);

// Neighbouring bytes may have different writers; the bug writes its neighbour's byte too.
template <bool kBug>
__global__ void neighbouring_bytes(const int* in, unsigned char* out) {
  __shared__ alignas(4) unsigned char bytes[128];
  int tid = threadIdx.x;
  if (kBug && tid % 2 == 0) {
    *reinterpret_cast<uint16_t*>(&bytes[tid]) = static_cast<uint16_t>(in[tid]);  // BUG: shared_race
  } else {
    bytes[tid] = static_cast<unsigned char>(in[tid]);  // BUG: shared_race
  }
  __syncthreads();
  out[tid] = bytes[127 - tid];
}
PLANT(neighbouring_bytes, const int*, unsigned char*);

// Spreads the largest value to all, one neighbour a round, until no thread changed.
template <bool kBug>
__global__ void fixpoint(const int* in, int* out) {
  __shared__ int value[64];
  int tid = threadIdx.x;
  value[tid] = in[tid];
  __syncthreads();
  int changed;
  do {
    int mine = value[tid];
    int best = max(mine, value[(tid + 1) % 64]);  // BUG: shared_race
    if (!kBug) __syncthreads();
    if (best != mine) value[tid] = best;  // BUG: shared_race
    changed = __syncthreads_or(best != mine);
  } while (changed);
  out[tid] = value[tid];
}
PLANT(fixpoint, const int*, int*);

// A flag in shared memory orders nothing without fences.
template <bool kBug>
__global__ void flag_without_fence(const int* in, int* out) {
  __shared__ int payload;
  __shared__ volatile int ready;
  int tid = threadIdx.x;
  if (tid == 0) {
    payload = 0;
    ready = 0;
  }
  __syncthreads();
  if (tid == 0) {
    payload = in[0];  // BUG: shared_race
    if (!kBug) __threadfence_block();
    ready = 1;
  } else if (tid >= 32) {
    while (ready == 0) {
    }
    __threadfence_block();
    out[tid - 32] = payload + tid;  // BUG: shared_race
  }
}
PLANT(flag_without_fence, const int*, int*);

// A warp that produces and a warp that consumes, with a named barrier for "full" and one for "empty".
template <bool kBug>
__global__ void named_barriers(const int* in, int* out) {
  __shared__ int tile[32];
  int lane = threadIdx.x % 32;
  constexpr int kFull = 1, kEmpty = 2, kRounds = 5;
  if (threadIdx.x < 32) {
    for (int i = 0; i < kRounds; ++i) {
      if (!kBug && i > 0) barrier_sync(kEmpty, 64);
      tile[lane] = in[i * 32 + lane];  // BUG: shared_race
      if (kBug && i > 0) barrier_sync(kEmpty, 64);
      barrier_arrive(kFull, 64);
    }
  } else {
    int sum = 0;
    for (int i = 0; i < kRounds; ++i) {
      barrier_sync(kFull, 64);
      sum += (i + 1) * tile[31 - lane];  // BUG: shared_race
      if (i + 1 < kRounds) barrier_arrive(kEmpty, 64);
    }
    out[lane] = sum;
  }
}
PLANT(named_barriers, const int*, int*);

template <bool kBug>
__global__ void named_barrier_wrong_count(const int* in, int* out) {
  __shared__ int tile[32];
  int lane = threadIdx.x % 32;
  if (threadIdx.x < 32) {
    tile[lane] = in[lane];
    barrier_arrive(1, 64);  // BUG: barrier_misuse
  } else {
    barrier_sync(1, kBug ? 96 : 64);  // BUG: barrier_misuse | deadlock
    out[lane] = tile[31 - lane];
  }
}
PLANT(named_barrier_wrong_count, const int*, int*);

template <bool kBug>
__global__ void named_barrier_wrong_id(const int* in, int* out) {
  __shared__ int tile[32];
  int lane = threadIdx.x % 32;
  if (threadIdx.x < 32) {
    tile[lane] = in[lane];
    barrier_arrive(1, 64);
  } else {
    barrier_sync(kBug ? 2 : 1, 64);  // BUG: deadlock
    out[lane] = tile[31 - lane];
  }
}
PLANT(named_barrier_wrong_id, const int*, int*);

// Not a whole number of warps.
template <bool kBug>
__global__ void barrier_bad_count(const int* in, int* out, int threads) {
  __shared__ int tile[64];
  int tid = threadIdx.x;
  tile[tid] = in[tid];
  barrier_sync(1, kBug ? threads - 16 : threads);  // BUG: barrier_misuse
  out[tid] = tile[63 - tid];
}
PLANT(barrier_bad_count, const int*, int*, int);

// There are sixteen.
template <bool kBug>
__global__ void barrier_bad_id(const int* in, int* out, int last) {
  __shared__ int tile[64];
  int tid = threadIdx.x;
  tile[tid] = in[tid];
  barrier_sync(kBug ? last + 1 : last, 64);  // BUG: barrier_misuse
  out[tid] = tile[63 - tid];
}
PLANT(barrier_bad_id, const int*, int*, int);

// bar.sync is aligned: a whole warp executes it or none of it.
template <bool kBug>
__global__ void barrier_in_half_a_warp(const int* in, int* out) {
  __shared__ int tile[64];
  int tid = threadIdx.x;
  tile[tid] = in[tid];
  if (!kBug || tid % 32 < 16) __syncthreads();  // BUG: divergent_collective | barrier_misuse
  tile[tid ^ (kBug ? 0 : 1)] += 3;
  __syncthreads();  // BUG: divergent_collective | barrier_misuse
  out[tid] = tile[63 - tid];
}
PLANT(barrier_in_half_a_warp, const int*, int*);

template <bool kBug>
__global__ void barrier_skipped_by_a_warp(const int* in, int* out) {
  __shared__ int tile[128];
  int tid = threadIdx.x;
  tile[tid] = in[tid];
  if (!kBug || tid < 96) __syncthreads();  // BUG: deadlock
  int left = tid < 96 ? tile[(tid + 1) % 96] : 0;
  barrier_sync(1, 128);  // BUG: deadlock
  out[tid] = left + tile[127 - tid];
}
PLANT(barrier_skipped_by_a_warp, const int*, int*);

// Blocks draw tiles from a counter until there are none; the broadcast of the tile's number is a buffer like any other.
template <bool kBug>
__global__ void work_queue(const int* in, int* out, int tiles, int* next) {
  __shared__ int tile;
  int tid = threadIdx.x;
  for (;;) {
    if (tid == 0) tile = atomicAdd(next, 1);  // BUG: shared_race
    __syncthreads();
    int mine = tile;  // BUG: shared_race
    if (!kBug) __syncthreads();
    if (mine >= tiles) break;
    out[mine * 64 + tid] = 5 * in[mine * 64 + tid];
  }
}
PLANT(work_queue, const int*, int*, int, int*);

// Two arrays cut out of the dynamic shared memory, the second one too early.
template <bool kBug>
__global__ void overlapping_arrays(const int* in, int* out) {
  extern __shared__ int memory[];
  int *keys = memory, *values = memory + (kBug ? 63 : 64);
  int tid = threadIdx.x;
  keys[tid] = in[tid] & 63;    // BUG: shared_race
  values[tid] = in[tid] >> 6;  // BUG: shared_race
  __syncthreads();
  out[tid] = values[keys[tid]];
}
PLANT(overlapping_arrays, const int*, int*);

template <bool kBug>
__global__ void counter_init_without_barrier(const int* in, int* out) {
  __shared__ int count;
  int tid = threadIdx.x;
  if (tid == 0) count = 0;  // BUG: shared_race
  if (!kBug) __syncthreads();
  if (in[tid] > 0) atomicAdd(&count, 1);  // BUG: shared_race | uninitialised_shared
  __syncthreads();
  if (tid == 0) out[0] = count;
}
PLANT(counter_init_without_barrier, const int*, int*);

// Half of the block meets at the barrier that __syncthreads uses.
template <bool kBug>
__global__ void named_barrier_zero(const int* in, int* out) {
  __shared__ int tile[128];
  int tid = threadIdx.x;
  tile[tid] = in[tid];
  if (tid < 64) {
    barrier_sync(kBug ? 0 : 1, 64);             // BUG: barrier_misuse | deadlock
    if (tid < 32) tile[tid] += tile[tid + 32];  // BUG: shared_race
  }
  __syncthreads();             // BUG: barrier_misuse | deadlock
  out[tid] = tile[127 - tid];  // BUG: shared_race
}
PLANT(named_barrier_zero, const int*, int*);

// A warp that has left does not come to a barrier that counts it.
template <bool kBug>
__global__ void named_barrier_after_exit(const int* in, int* out) {
  __shared__ int tile[96];
  int tid = threadIdx.x;
  if (tid >= 96) return;
  tile[tid] = in[tid];
  barrier_sync(1, kBug ? 128 : 96);  // BUG: deadlock | barrier_misuse
  out[tid] = tile[95 - tid];
}
PLANT(named_barrier_after_exit, const int*, int*);
