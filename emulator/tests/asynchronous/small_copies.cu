// cp.async and mbarrier within a block.
#include "ptx.cuh"

#define COPY(NAME, LEVEL, BYTES)                                                                                   \
  extern "C" __global__ void NAME(const uint8_t* in, const int* sizes, uint8_t* out, int how) {                    \
    __shared__ alignas(16) uint8_t to[64 * BYTES];                                                                 \
    const int t = threadIdx.x;                                                                                     \
    for (int k = 0; k < BYTES; ++k) to[t * BYTES + k] = 0xAB;                                                      \
    const uint32_t d = shared_address(to + t * BYTES);                                                             \
    const uint8_t* s = in + t * BYTES;                                                                             \
    if (how == 0) {                                                                                                \
      asm volatile("cp.async." LEVEL ".shared.global [%0], [%1], " #BYTES ";" ::"r"(d), "l"(s) : "memory");        \
    } else if (how == 1) {                                                                                         \
      asm volatile("cp.async." LEVEL ".shared.global.L2::128B [%0], [%1], " #BYTES ", %2;" ::"r"(d), "l"(s),       \
                   "r"(sizes[t])                                                                                   \
                   : "memory");                                                                                    \
    } else {                                                                                                       \
      asm volatile("{\n.reg .pred p;\nsetp.eq.s32 p, %2, 0;\ncp.async." LEVEL ".shared.global [%0], [%1], " #BYTES \
                   ", p;\n}" ::"r"(d),                                                                             \
                   "l"(s), "r"(sizes[t])                                                                           \
                   : "memory");                                                                                    \
    }                                                                                                              \
    asm volatile("cp.async.wait_all;" ::: "memory");                                                               \
    for (int k = 0; k < BYTES; ++k) out[t * BYTES + k] = to[t * BYTES + k];                                        \
  }
COPY(copy_4, "ca", 4)
COPY(copy_8, "ca", 8)
COPY(copy_16, "ca", 16)
COPY(copy_16_bypass, "cg", 16)

DEVICE void copy(int* to, const int* from) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(shared_address(to)), "l"(from) : "memory");
}
DEVICE void commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Four groups; all but the newest `left` have been waited for when group `read` is read.
extern "C" __global__ void groups(const int* in, int* out, int left, int read) {
  __shared__ int to[4][64];
  const int t = threadIdx.x;
  for (int g = 0; g < 4; ++g) {
    if (g == 2 && t % 2) continue;  // an empty group for some lanes
    copy(&to[g][t], in + g * 64 + t);
    if (g < 3) commit();
  }
  if (t % 2) commit();
  commit();
  switch (left) {
    case 0:
      asm volatile("cp.async.wait_group 0;" ::: "memory");
      break;
    case 1:
      asm volatile("cp.async.wait_group 1;" ::: "memory");
      break;
    case 2:
      asm volatile("cp.async.wait_group 2;" ::: "memory");
      break;
    case 3:
      asm volatile("cp.async.wait_group 3;" ::: "memory");
      break;
    case 4:
      asm volatile("cp.async.wait_group 4;" ::: "memory");
      break;
  }
  if (read != 2 || t % 2 == 0) out[t] = to[read][t];
  asm volatile("cp.async.wait_all;" ::: "memory");
}

// bug: 0 none; 1 no wait; 2 no barrier after the wait; 3 the place is written to while the copy is in flight;
// 4 the source changes before the wait
extern "C" __global__ void planted(int* in, int* out, int bug) {
  __shared__ int to[64];
  const int t = threadIdx.x;
  copy(&to[t], in + t);
  commit();
  if (bug == 3) to[t] = 1;
  if (bug == 4) in[t] = -1;
  if (bug != 1) asm volatile("cp.async.wait_group 0;" ::: "memory");
  if (bug != 2) __syncthreads();
  out[t] = to[t ^ 33];
}

// A ring of stages: the first warp copies, the second reads. how: 0 .noinc, 1 plain (the count is the reader's own
// arrival), 2 the reader does not wait.
extern "C" __global__ void copy_arrive(const int* in, int* out, int steps, int how) {
  __shared__ int to[2][32];
  __shared__ alignas(8) uint64_t full[2], empty[2];
  const int t = threadIdx.x % 32;
  if (threadIdx.x == 0) {
    for (int s = 0; s < 2; ++s) {
      mbarrier_init(&full[s], 32);
      mbarrier_init(&empty[s], 32);
    }
  }
  __syncthreads();
  for (int k = 0; k < steps; ++k) {
    const int s = k % 2, parity = k / 2 % 2;
    if (threadIdx.x < 32) {
      while (!mbarrier_try_parity(&empty[s], parity ^ 1)) {
      }
      copy(&to[s][t], in + k * 32 + t);
      if (how == 1) {
        asm volatile("cp.async.mbarrier.arrive.shared::cta.b64 [%0];" ::"r"(shared_address(&full[s])) : "memory");
        mbarrier_arrive(&full[s]);
      } else {
        asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(shared_address(&full[s])) : "memory");
      }
    } else {
      while (how != 2 && !mbarrier_try_parity(&full[s], parity)) {
      }
      out[k * 32 + t] = to[s][t ^ 1];
      mbarrier_arrive(&empty[s]);
    }
  }
}

// Phases by state: every thread arrives `phases` times; values pass through shared memory.
extern "C" __global__ void phases(int* out, int phases) {
  __shared__ int value[64];
  __shared__ alignas(8) uint64_t bar;
  const int t = threadIdx.x;
  if (t == 0) mbarrier_init(&bar, 64 + 8);
  __syncthreads();
  int sum = 0;
  for (int k = 0; k < phases; ++k) {
    value[t] = k * 64 + t;
    const uint64_t state = t == 5 ? mbarrier_arrive_count(&bar, 9) : mbarrier_arrive(&bar);
    while (!mbarrier_test(&bar, state)) {
    }
    sum += value[(t + 17) % 64];
    const uint64_t again = t == 6 ? mbarrier_arrive_count(&bar, 9) : mbarrier_arrive(&bar);
    while (!mbarrier_test(&bar, again)) {
    }
  }
  out[t] = sum;
  __syncthreads();
  if (t == 0) {
    mbarrier_inval(&bar);
    *reinterpret_cast<uint64_t*>(&bar) = 7;
    out[64] = static_cast<int>(bar);
    mbarrier_init(&bar, 1);
  }
}

// Threads leave one after the other; pending counts as states tell them.
extern "C" __global__ void drops(uint32_t* out) {
  __shared__ alignas(8) uint64_t bar;
  if (threadIdx.x == 0) mbarrier_init(&bar, 64);
  __syncthreads();
  for (int k = 0; k < 64; ++k) {
    uint64_t state;
    if (threadIdx.x == k) {
      asm volatile("mbarrier.arrive_drop.shared.b64 %0, [%1];" : "=l"(state) : "r"(shared_address(&bar)) : "memory");
      out[k] = k;
      return;
    }
    state = mbarrier_arrive(&bar);
    while (!mbarrier_test(&bar, state)) {
    }
  }
}

extern "C" __global__ void pending(uint32_t* out) {
  __shared__ alignas(8) uint64_t bar;
  if (threadIdx.x == 0) {
    mbarrier_init(&bar, 10);
    uint64_t state;
    for (int k = 0; k < 3; ++k) {
      asm volatile("mbarrier.arrive.noComplete.shared.b64 %0, [%1], %2;"
                   : "=l"(state)
                   : "r"(shared_address(&bar)), "r"(k + 1)
                   : "memory");
      asm volatile("mbarrier.pending_count.b64 %0, %1;" : "=r"(out[k]) : "l"(state));
    }
    asm volatile("mbarrier.arrive_drop.noComplete.shared.b64 %0, [%1], 2;"
                 : "=l"(state)
                 : "r"(shared_address(&bar))
                 : "memory");
    asm volatile("mbarrier.pending_count.b64 %0, %1;" : "=r"(out[3]) : "l"(state));
    out[4] = mbarrier_test(&bar, state);
    state = mbarrier_arrive_count(&bar, 2);
    out[5] = mbarrier_test(&bar, state);
    // The next phase wants two less.
    state = mbarrier_arrive_count(&bar, 7);
    out[6] = mbarrier_test(&bar, state);
    state = mbarrier_arrive(&bar);
    out[7] = mbarrier_test(&bar, state);
  }
}

extern "C" __global__ void misuse(uint32_t* out, int bug) {
  __shared__ alignas(8) uint64_t bar[2];
  if (threadIdx.x == 0) {
    if (bug != 0) mbarrier_init(&bar[0], bug == 1 ? 0 : bug == 2 ? 1 << 20 : 2);
    mbarrier_init(&bar[1], 1);
  }
  if (bug != 3) __syncthreads();
  if (bug == 3 && threadIdx.x == 40) mbarrier_arrive(&bar[0]);
  if (threadIdx.x != 0 || bug == 3) return;
  if (bug == 0) mbarrier_arrive(&bar[0]);
  if (bug == 4) mbarrier_init(&bar[0], 2);
  if (bug == 5) mbarrier_arrive_count(&bar[0], 3);
  if (bug == 6) reinterpret_cast<uint32_t*>(bar)[1] = 5;
  if (bug == 7) {
    const uint64_t state = mbarrier_arrive(&bar[1]);
    out[0] = mbarrier_test(&bar[0], state);
  }
  if (bug == 8) {
    const uint64_t state = mbarrier_arrive(&bar[1]);
    mbarrier_arrive(&bar[1]);
    out[0] = mbarrier_test(&bar[1], state);
  }
  if (bug == 9) out[0] = mbarrier_test(&bar[0], 17);
  if (bug == 10) {
    uint64_t state;
    asm volatile("mbarrier.arrive.noComplete.shared.b64 %0, [%1], 2;"
                 : "=l"(state)
                 : "r"(shared_address(&bar[0]))
                 : "memory");
    out[0] = static_cast<uint32_t>(state);
  }
  if (bug == 11) {
    mbarrier_inval(&bar[0]);
    mbarrier_arrive(&bar[0]);
  }
  if (bug == 12) mbarrier_arrive_count(&bar[0], 0);
  if (bug == 13) out[0] = mbarrier_test(reinterpret_cast<char*>(bar) + 4, 0);
}
