// cp.async.bulk, its groups and reductions, and clusters: barriers, remote shared memory, st.async, red.async.
#include "ptx.cuh"

DEVICE void bulk_load(void* to, const void* from, uint32_t bytes, const void* bar) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                   shared_address(to)),
               "l"(from), "r"(bytes), "r"(shared_address(bar))
               : "memory");
}
DEVICE void bulk_store(void* to, const void* from, uint32_t bytes) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(to), "r"(shared_address(from)),
               "r"(bytes)
               : "memory");
}
DEVICE void commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }

// A ring of stages: one warp loads, the others double the values, and one of their threads stores them.
// bug: 1 the consumers do not wait; 2 the producer does not wait; 3 no proxy fence before the store; 4 the stored
// buffer is overwritten before its store was waited for; 5 the block ends before the last store was waited for; 6 more
// bytes expected than come; 7 the last phase is not waited for
extern "C" __global__ void ring(const int* in, int* out, int steps, int bug) {
  constexpr int kStages = 2, kTile = 64;
  __shared__ alignas(128) int tile[kStages][kTile], result[kTile];
  __shared__ alignas(8) uint64_t full[kStages], empty[kStages];
  if (threadIdx.x == 0) {
    for (int s = 0; s < kStages; ++s) {
      mbarrier_init(&full[s], 1);
      mbarrier_init(&empty[s], kTile);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();
  if (threadIdx.x >= kTile) {
    if (threadIdx.x == kTile) {
      for (int k = 0; k < steps; ++k) {
        const int s = k % kStages;
        if (bug != 2) mbarrier_wait(&empty[s], (k / kStages & 1) ^ 1);
        mbarrier_expect(&full[s], kTile * 4 + (bug == 6) * 16);
        bulk_load(tile[s], in + k * kTile, kTile * 4, &full[s]);
      }
    }
    return;
  }
  for (int k = 0; k < steps; ++k) {
    const int s = k % kStages;
    if (bug == 7 && k == steps - 1) break;
    if (bug != 1) mbarrier_wait(&full[s], k / kStages & 1);
    const int value = tile[s][threadIdx.x];
    mbarrier_arrive(&empty[s]);
    if (k > 0) {
      if (threadIdx.x == 0 && bug != 4) asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
      asm volatile("bar.sync 1, 64;" ::: "memory");
    }
    result[threadIdx.x] = value * 2;
    if (bug != 3) fence_async();
    asm volatile("bar.sync 1, 64;" ::: "memory");
    if (threadIdx.x == 0) {
      bulk_store(out + k * kTile, result, kTile * 4);
      commit();
    }
  }
  if (threadIdx.x == 0 && bug != 5) asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
}

// One load of any size and place. how: 0 to shared::cluster, 1 to shared::cta with a cache hint
extern "C" __global__ void load(const uint8_t* in, uint8_t* out, int bytes, int skew, int how) {
  __shared__ alignas(128) uint8_t to[4096];
  __shared__ alignas(8) uint64_t bar;
  if (threadIdx.x == 0) {
    mbarrier_init(&bar, 1);
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(in), "r"(16) : "memory");
    mbarrier_expect(&bar, bytes);
    if (how == 0) {
      bulk_load(to + skew, in, bytes, &bar);
    } else {
      uint64_t policy;
      asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
      asm volatile(
          "cp.async.bulk.shared::cta.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::
              "r"(shared_address(to + skew)),
          "l"(in), "r"(bytes), "r"(shared_address(&bar)), "l"(policy)
          : "memory");
    }
    mbarrier_wait(&bar, 0);
    for (int k = 0; k < bytes; ++k) out[k] = to[skew + k];
  }
}

// Groups of stores: when a wait for all but `left` of four returns, which have taken effect?
extern "C" __global__ void store_groups(int* out, int* seen, int left) {
  __shared__ alignas(128) int from[4][32];
  for (int g = 0; g < 4; ++g) from[g][threadIdx.x] = g + 1;
  fence_async();
  __syncwarp();
  if (threadIdx.x == 0) {
    for (int g = 0; g < 4; ++g) {
      bulk_store(out + g * 32, from[g], 128);
      commit();
    }
    switch (left) {
      case 0:
        asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
        break;
      case 1:
        asm volatile("cp.async.bulk.wait_group 1;" ::: "memory");
        break;
      case 2:
        asm volatile("cp.async.bulk.wait_group 2;" ::: "memory");
        break;
      case 3:
        asm volatile("cp.async.bulk.wait_group 3;" ::: "memory");
        break;
    }
    for (int g = 0; g < 4; ++g) seen[g] = static_cast<volatile int*>(out)[g * 32 + 31];
    asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
  }
}

#define REDUCE(NAME, OP)                                                                                   \
  extern "C" __global__ void NAME(const uint8_t* in, uint8_t* out, int bytes) {                            \
    __shared__ alignas(128) uint8_t from[1024];                                                            \
    for (int k = threadIdx.x; k < bytes; k += blockDim.x) from[k] = in[blockIdx.x * bytes + k];            \
    fence_async();                                                                                         \
    __syncthreads();                                                                                       \
    if (threadIdx.x == 0) {                                                                                \
      asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group." OP " [%0], [%1], %2;" ::"l"(out), \
                   "r"(shared_address(from)), "r"(bytes)                                                   \
                   : "memory");                                                                            \
      commit();                                                                                            \
      asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");                                       \
    }                                                                                                      \
  }
REDUCE(add_u32, "add.u32")
REDUCE(add_s32, "add.s32")
REDUCE(add_u64, "add.u64")
REDUCE(add_f32, "add.f32")
REDUCE(add_f64, "add.f64")
REDUCE(add_f16, "add.noftz.f16")
REDUCE(add_bf16, "add.noftz.bf16")
REDUCE(min_u32, "min.u32")
REDUCE(min_s32, "min.s32")
REDUCE(min_u64, "min.u64")
REDUCE(min_s64, "min.s64")
REDUCE(min_f16, "min.f16")
REDUCE(min_bf16, "min.bf16")
REDUCE(max_u32, "max.u32")
REDUCE(max_s32, "max.s32")
REDUCE(max_u64, "max.u64")
REDUCE(max_s64, "max.s64")
REDUCE(max_f16, "max.f16")
REDUCE(max_bf16, "max.bf16")
REDUCE(and_b32, "and.b32")
REDUCE(or_b32, "or.b32")
REDUCE(xor_b32, "xor.b32")
REDUCE(and_b64, "and.b64")
REDUCE(or_b64, "or.b64")
REDUCE(xor_b64, "xor.b64")
REDUCE(inc_u32, "inc.u32")
REDUCE(dec_u32, "dec.u32")

// Each block sends its values to the next one. how: 0 copy, 1 reduction, 2 st.async, 3 red.async, 4 multicast load
// bug: 1 the receiver does not wait; 2 the sender overwrites its buffer at once; 3 no cluster barrier at the start;
// 4 no proxy fence before the copy
extern "C" __global__ void send(const uint32_t* in, uint32_t* out, int how, int bug) {
  __shared__ alignas(128) uint32_t from[32], to[32];
  __shared__ alignas(8) uint64_t bar;
  const uint32_t rank = cluster_rank(), blocks = cluster_blocks(), next = (rank + 1) % blocks, t = threadIdx.x;
  from[t] = in[blockIdx.x * 32 + t];
  to[t] = 1000;
  if (t == 0) {
    mbarrier_init(&bar, 1);
    mbarrier_expect(&bar, 128);
  }
  if (bug != 4) fence_async();
  if (bug != 3) cluster_sync();
  const uint32_t remote = map_shared(to, next), remote_bar = map_shared(&bar, next);
  if (how == 0 && t == 0) {
    asm volatile(
        "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(remote),
        "r"(shared_address(from)), "r"(128), "r"(remote_bar)
        : "memory");
    if (bug == 2) from[3] = 0;
  }
  if (how == 1 && t == 0) {
    asm volatile(
        "cp.reduce.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes.add.u32 [%0], [%1], %2, [%3];" ::
            "r"(remote),
        "r"(shared_address(from)), "r"(128), "r"(remote_bar)
        : "memory");
  }
  if (how == 2) {
    if (t < 16) {
      asm volatile(
          "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::"r"(remote + t * 4),
          "r"(from[t]), "r"(remote_bar)
          : "memory");
    } else if (t % 4 == 0) {
      asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(
                       remote + t * 4),
                   "r"(from[t]), "r"(from[t + 1]), "r"(from[t + 2]), "r"(from[t + 3]), "r"(remote_bar)
                   : "memory");
    }
  }
  if (how == 3) {
    asm volatile("red.async.relaxed.cluster.shared::cluster.mbarrier::complete_tx::bytes.add.u32 [%0], %1, [%2];" ::"r"(
                     remote + t * 4),
                 "r"(from[t]), "r"(remote_bar)
                 : "memory");
  }
  if (how == 4 && t == 0 && rank == 0) {
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1], %2, [%3], "
        "%4;" ::"r"(shared_address(to)),
        "l"(in + blockIdx.x * 32), "r"(128), "r"(shared_address(&bar)), "h"(static_cast<uint16_t>((1 << blocks) - 1))
        : "memory");
  }
  if (bug != 1) mbarrier_wait(&bar, 0);
  out[blockIdx.x * 32 + t] = to[t];
  cluster_sync();
}

// Ordinary access to other blocks' shared memory. how: 0 release and acquire, 1 relaxed after a fence,
// 2 relaxed with no fence, 3 no barrier at the end, 4 arrive twice, 5 wait without an arrival, 6 some blocks end early
extern "C" __global__ void exchange(uint32_t* out, int how) {
  __shared__ uint32_t value;
  const uint32_t rank = cluster_rank(), blocks = cluster_blocks();
  if (how == 6 && rank == 1) return;
  if (threadIdx.x == 0) value = rank * 10;
  if (how == 5) cluster_wait();
  if (how == 1) asm volatile("fence.acq_rel.cluster;" ::: "memory");
  if (how == 1 || how == 2) {
    asm volatile("barrier.cluster.arrive.relaxed;" ::: "memory");
  } else {
    asm volatile("barrier.cluster.arrive;" ::: "memory");
  }
  if (how == 4) cluster_arrive();
  asm volatile("barrier.cluster.wait;" ::: "memory");
  const uint32_t other = (rank + blocks - 1) % blocks;
  uint32_t seen, owner;
  asm volatile("ld.shared::cluster.u32 %0, [%1];" : "=r"(seen) : "r"(map_shared(&value, other)) : "memory");
  asm volatile("getctarank.shared::cluster.u32 %0, %1;" : "=r"(owner) : "r"(map_shared(&value, other)));
  uint64_t generic;
  asm volatile("mapa.u64 %0, %1, %2;" : "=l"(generic) : "l"(&value), "r"(other));
  if (threadIdx.x == 1) out[blockIdx.x] = seen + owner + *reinterpret_cast<uint32_t*>(generic);
  if (how != 3) cluster_sync();
}

// Block 0 counts arrivals of the whole cluster.
extern "C" __global__ void remote_arrivals(uint32_t* out, int bug) {
  __shared__ alignas(8) uint64_t bar;
  __shared__ uint32_t values[8];
  const uint32_t rank = cluster_rank(), blocks = cluster_blocks();
  if (threadIdx.x == 0 && rank == 0) {
    mbarrier_init(&bar, blocks * 2);
    if (bug != 1) asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  asm volatile("barrier.cluster.arrive.relaxed;" ::: "memory");
  asm volatile("barrier.cluster.wait;" ::: "memory");
  if (threadIdx.x == 0) {
    asm volatile("st.shared::cluster.u32 [%0], %1;" ::"r"(map_shared(&values[rank], 0)), "r"(rank + 5) : "memory");
    asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0], 2;" ::"r"(map_shared(&bar, 0))
                 : "memory");
  }
  if (rank == 0) {
    while (true) {
      uint32_t done;
      asm volatile(
          "{\n.reg .pred p;\nmbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], 0, 100;\nselp.u32 %0, "
          "1, 0, p;\n}"
          : "=r"(done)
          : "r"(shared_address(&bar))
          : "memory");
      if (done) break;
    }
    if (threadIdx.x < blocks) out[threadIdx.x] = values[threadIdx.x];
  }
  cluster_sync();
}

// A cluster of one block, half of whose threads leave: the rest need not wait for them.
extern "C" __global__ void early_exits(uint32_t* out) {
  if (threadIdx.x % 2) return;
  asm volatile("barrier.cluster.arrive;" ::: "memory");
  asm volatile("barrier.cluster.wait;" ::: "memory");
  out[blockIdx.x * blockDim.x + threadIdx.x] = threadIdx.x;
}
