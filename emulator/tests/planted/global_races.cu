// Global memory between the blocks of a launch, and between launches.
#include <cooperative_groups.h>

#include "planted.cuh"

template <bool kBug>
__global__ void two_blocks_write(const int* in, int* out) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  // Each block's last thread also writes the first of the next block.
  if (kBug && threadIdx.x == 63 && blockIdx.x + 1 < gridDim.x) out[i + 1] = -1;  // BUG: global_race
  out[i] = in[i];                                                                // BUG: global_race
}
PLANT(two_blocks_write, const int*, int*);

// A stencil in place.
template <bool kBug>
__global__ void stencil_in_place(int* values, int* out, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  int sum = 0;
  if (i < n) sum = values[i] + (i + 1 < n ? values[i + 1] : 0);  // BUG: global_race
  if (kBug) __syncthreads();
  if (i < n) (kBug ? values : out)[i] = sum;  // BUG: global_race
}
PLANT(stencil_in_place, int*, int*, int);

// Two warps of one block that meet in global memory.
template <bool kBug>
__global__ void exchange_within_a_block(const int* in, int* scratch, int* out) {
  int tid = threadIdx.x;
  scratch[tid] = 2 * in[tid];  // BUG: global_race
  if (!kBug) __syncthreads();
  out[tid] = scratch[tid ^ 32];  // BUG: global_race
}
PLANT(exchange_within_a_block, const int*, int*, int*);

// Neighbouring lanes and blocks may store neighbouring halves; the bug stores whole words of two.
template <bool kBug>
__global__ void neighbouring_halves(const int* in, uint16_t* out) {
  int i = blockIdx.x * 33 + threadIdx.x;  // an odd number to a block: blocks share words
  if (threadIdx.x >= 33) return;
  if (kBug && i % 2 == 0) {
    *reinterpret_cast<uint32_t*>(out + i) = static_cast<uint16_t>(in[i]);  // BUG: global_race
  } else {
    out[i] = static_cast<uint16_t>(in[i]);  // BUG: global_race
  }
}
PLANT(neighbouring_halves, const int*, uint16_t*);

// A plain increment beside atomic ones.
template <bool kBug>
__global__ void counter_half_atomic(const int* in, int* counter) {
  int found = __syncthreads_count(in[blockIdx.x * blockDim.x + threadIdx.x] > 0);
  if (threadIdx.x == 0) {
    if (kBug && blockIdx.x == 1) {
      counter[0] += found;  // BUG: global_race
    } else {
      atomicAdd(&counter[0], found);  // BUG: global_race
    }
  }
}
PLANT(counter_half_atomic, const int*, int*);

// Atomic for the threads of one block only, used by several.
template <bool kBug>
__global__ void atomic_scope_too_narrow(const int* in, int* counter) {
  int value = in[blockIdx.x * blockDim.x + threadIdx.x];
  if (kBug) {
    atomicAdd_block(&counter[0], value);  // BUG: global_race
  } else {
    atomicAdd(&counter[0], value);
  }
}
PLANT(atomic_scope_too_narrow, const int*, int*);

// The last block to finish adds up what the others left.
template <bool kBug>
__global__ void last_block_reduction(const int* in, int* partial, unsigned* ticket, int* out) {
  __shared__ int sums[64];
  __shared__ bool last;
  int tid = threadIdx.x;
  sums[tid] = in[blockIdx.x * 64 + tid];
  for (int step = 32; step > 0; step /= 2) {
    __syncthreads();
    if (tid < step) sums[tid] += sums[tid + step];
  }
  if (tid == 0) {
    partial[blockIdx.x] = sums[0];  // BUG: global_race
    if (!kBug) __threadfence();
    last = atomicAdd(ticket, 1u) == gridDim.x - 1;
    __threadfence();
  }
  __syncthreads();
  if (last) {
    int sum = 0;
    for (int i = tid; i < gridDim.x; i += 64) sum += partial[i];  // BUG: global_race
    atomicAdd(out, sum);
  }
}
PLANT(last_block_reduction, const int*, int*, unsigned*, int*);

// A block's partial sums by all of its threads: the fence of each, then a barrier, then the ticket.
template <bool kBug>
__global__ void last_block_of_many_writers(const int* in, int* partial, unsigned* ticket, int* out) {
  __shared__ bool last;
  int tid = threadIdx.x;
  partial[blockIdx.x * 64 + tid] = 3 * in[blockIdx.x * 64 + tid];  // BUG: global_race
  __threadfence();
  if (!kBug) __syncthreads();
  if (tid == 0) last = atomicAdd(ticket, 1u) == gridDim.x - 1;
  __syncthreads();
  __threadfence();
  if (last) {
    int sum = 0;
    for (int block = 0; block < gridDim.x; ++block) sum += partial[block * 64 + tid];  // BUG: global_race
    out[tid] = sum;
  }
}
PLANT(last_block_of_many_writers, const int*, int*, unsigned*, int*);

// A cooperative kernel in two steps.
template <bool kBug>
__global__ void grid_without_sync(const int* in, int* scratch, int* out, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  scratch[i] = in[i] + 1;  // BUG: global_race
  if (kBug) {
    __syncthreads();
  } else {
    cooperative_groups::this_grid().sync();
  }
  out[i] = scratch[n - 1 - i];  // BUG: global_race
}
PLANT(grid_without_sync, const int*, int*, int*, int);

// A single-pass scan: a block publishes its sum, then its prefix, and looks back over its predecessors'.
struct Status {
  volatile int flag;  // 0: nothing yet, 1: sum, 2: prefix
  int sum, prefix;
};

template <bool kBug>
__global__ void look_back_scan(const int* in, int* out, Status* status, unsigned* next) {
  __shared__ int values[64];
  __shared__ int block, before;
  int tid = threadIdx.x;
  if (tid == 0) block = static_cast<int>(atomicAdd(next, 1u));  // blocks start in the order of their tiles
  __syncthreads();
  values[tid] = in[block * 64 + tid];
  for (int step = 1; step < 64; step *= 2) {
    __syncthreads();
    int left = tid >= step ? values[tid - step] : 0;
    __syncthreads();
    values[tid] += left;
  }
  __syncthreads();
  if (tid == 0) {
    int total = values[63], sum = 0;
    status[block].sum = total;  // BUG: global_race
    if (!kBug) __threadfence();
    status[block].flag = 1;
    for (int i = block - 1; i >= 0; --i) {
      int flag;
      while ((flag = status[i].flag) == 0) {
      }
      __threadfence();
      sum += flag == 2 ? status[i].prefix : status[i].sum;  // BUG: global_race
      if (flag == 2) break;
    }
    status[block].prefix = sum + total;  // BUG: global_race
    if (!kBug) __threadfence();
    status[block].flag = 2;
    before = sum;
  }
  __syncthreads();
  out[block * 64 + tid] = before + values[tid];
}
PLANT(look_back_scan, const int*, int*, Status*, unsigned*);

// The same protocol for a payload of ordinary stores.
template <bool kBug>
__global__ void message_without_fence(const int* in, int* payload, int* flag, int* out) {
  if (blockIdx.x == 0) {
    payload[threadIdx.x] = in[threadIdx.x];  // BUG: global_race
    __syncthreads();
    if (threadIdx.x == 0) {
      if (!kBug) __threadfence();
      atomicExch(flag, 1);
    }
  } else {
    if (threadIdx.x == 0) {
      while (atomicAdd(flag, 0) == 0) {
      }
      __threadfence();
    }
    __syncthreads();
    out[threadIdx.x] = payload[threadIdx.x ^ 1];  // BUG: global_race
  }
}
PLANT(message_without_fence, const int*, int*, int*, int*);

// Release and acquire by name; the bug's store is relaxed.
template <bool kBug>
__global__ void message_relaxed(const int* in, int* payload, int* flag, int* out) {
  if (blockIdx.x == 0) {
    if (threadIdx.x != 0) return;
    payload[0] = in[0];  // BUG: global_race
    if (kBug) {
      asm volatile("st.relaxed.gpu.global.s32 [%0], 1;" ::"l"(flag) : "memory");
    } else {
      asm volatile("st.release.gpu.global.s32 [%0], 1;" ::"l"(flag) : "memory");
    }
  } else {
    int ready;
    do {
      asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(ready) : "l"(flag) : "memory");
    } while (!ready);
    out[threadIdx.x] = payload[0] + threadIdx.x;  // BUG: global_race
  }
}
PLANT(message_relaxed, const int*, int*, int*, int*);

// Waits for a flag that is set somewhere else.
template <bool kBug>
__global__ void flag_never_set(const int* in, volatile int* flags, int* out) {
  if (blockIdx.x == 0) {
    if (threadIdx.x == 0) flags[kBug ? 1 : 0] = in[0];
  } else if (threadIdx.x == 0) {
    int value;
    while ((value = flags[0]) == 0) {  // BUG: deadlock
    }
    out[0] = value;
  }
}
PLANT(flag_never_set, const int*, volatile int*, int*);

// All blocks wait for all others: fine while every block of the grid is resident, and never otherwise.
template <bool kBug>
__global__ void __launch_bounds__(1024) hand_made_grid_barrier(const int* in, int* arrived, int* scratch, int* out) {
  int block = blockIdx.x, tid = threadIdx.x;
  if (tid == 0) {
    scratch[block] = in[block];
    __threadfence();
    atomicAdd(arrived, 1);
    while (*const_cast<volatile int*>(arrived) < static_cast<int>(gridDim.x)) {  // BUG: deadlock
    }
    __threadfence();
    out[block] = scratch[gridDim.x - 1 - block];
  }
}
PLANT(hand_made_grid_barrier, const int*, int*, int*, int*);

// Polls with an ordinary load.
template <bool kBug>
__global__ void polls_with_weak_load(const int* in, int* flag, int* out) {
  if (blockIdx.x == 0) {
    if (threadIdx.x == 0) *const_cast<volatile int*>(flag) = in[0];  // BUG: global_race
  } else {
    int value;
    do {
      if (kBug) {
        asm volatile("ld.global.s32 %0, [%1];" : "=r"(value) : "l"(flag) : "memory");  // BUG: global_race
      } else {
        asm volatile("ld.relaxed.gpu.global.s32 %0, [%1];" : "=r"(value) : "l"(flag) : "memory");
      }
    } while (value == 0);
    out[threadIdx.x] = value;
  }
}
PLANT(polls_with_weak_load, const int*, int*, int*);

// The read-only path may hold what memory held before the launch.
template <bool kBug>
__global__ void read_only_load_of_written(const int* in, int* scratch, int* out) {
  int tid = threadIdx.x;
  scratch[tid] = in[tid] + 4;
  __syncthreads();
  if (kBug) {
    out[tid] = __ldg(scratch + (tid ^ 33));  // BUG: global_race
  } else {
    out[tid] = scratch[tid ^ 33];
  }
}
PLANT(read_only_load_of_written, const int*, int*, int*);

// Each element is read by two other warps of the block before it is overwritten.
template <bool kBug>
__global__ void in_place_within_a_block(int* values) {
  int tid = threadIdx.x;
  int sum = values[(tid + 32) % 128] - values[(tid + 64) % 128];  // BUG: global_race
  if (!kBug) __syncthreads();
  values[tid] = sum;  // BUG: global_race
}
PLANT(in_place_within_a_block, int*);

// Lanes of one warp that meet in global memory.
template <bool kBug>
__global__ void exchange_within_a_warp(const int* in, int* scratch, int* out) {
  int tid = threadIdx.x;
  scratch[tid] = 3 * in[tid];  // BUG: global_race
  if (!kBug) __syncwarp();
  out[tid] = scratch[tid ^ 5];  // BUG: global_race
}
PLANT(exchange_within_a_warp, const int*, int*, int*);

// A fence for the block, where another block listens.
template <bool kBug>
__global__ void message_with_block_fence(const int* in, int* payload, int* flag, int* out) {
  if (blockIdx.x == 0) {
    if (threadIdx.x == 0) {
      payload[0] = in[0];  // BUG: global_race
      if (kBug) {
        __threadfence_block();
      } else {
        __threadfence();
      }
      atomicExch(flag, 1);
    }
  } else if (threadIdx.x == 0) {
    while (atomicAdd(flag, 0) == 0) {
    }
    __threadfence();
    out[0] = payload[0] + 1;  // BUG: global_race
  }
}
PLANT(message_with_block_fence, const int*, int*, int*, int*);

// Who polls needs a fence as much as who publishes.
template <bool kBug>
__global__ void message_without_acquire(const int* in, int* payload, int* flag, int* out) {
  if (blockIdx.x == 0) {
    if (threadIdx.x == 0) {
      payload[0] = in[0];  // BUG: global_race
      __threadfence();
      atomicExch(flag, 1);
    }
  } else if (threadIdx.x == 0) {
    while (*const_cast<volatile int*>(flag) == 0) {
    }
    if (!kBug) __threadfence();
    out[0] = payload[0] + 2;  // BUG: global_race
  }
}
PLANT(message_without_acquire, const int*, int*, int*, int*);

// The host launches more blocks than can be resident together.
template <bool kBug>
__global__ void __launch_bounds__(1024) cooperative_too_large(int* counts, int* out) {  // BUG: launch_limit
  if (threadIdx.x == 0) counts[blockIdx.x] = blockIdx.x + 1;
  cooperative_groups::this_grid().sync();
  if (threadIdx.x == 0) out[blockIdx.x] = counts[gridDim.x - 1 - blockIdx.x];
}
PLANT(cooperative_too_large, int*, int*);
