// Clusters: shared memory of the neighbour, cluster barriers, remote arrivals, multicast. sm_90a.
#include <cooperative_groups.h>

#include "planted.cuh"

template <bool kBug>
__global__ void read_without_cluster_barrier(const int* in, int* out) {
  __shared__ int tile[64];
  int tid = threadIdx.x, i = blockIdx.x * 64 + tid;
  tile[tid] = in[i];  // BUG: shared_race
  if (kBug) {
    __syncthreads();
  } else {
    cluster_arrive();
    cluster_wait();
  }
  out[i] = load_cluster(map_to_rank(&tile[63 - tid], cluster_rank() ^ 1));  // BUG: shared_race | uninitialised_shared
  cluster_arrive();
  cluster_wait();
}
PLANT(read_without_cluster_barrier, const int*, int*);

// A relaxed arrival counts, and orders nothing.
template <bool kBug>
__global__ void relaxed_cluster_barrier(const int* in, int* out) {
  __shared__ int tile[64];
  int tid = threadIdx.x, i = blockIdx.x * 64 + tid;
  tile[tid] = 0;
  cluster_arrive();
  cluster_wait();
  tile[tid] = in[i];  // BUG: shared_race
  if (kBug) {
    cluster_arrive_relaxed();
  } else {
    cluster_arrive();
  }
  cluster_wait();
  out[i] = load_cluster(map_to_rank(&tile[63 - tid], cluster_rank() ^ 1));  // BUG: shared_race
  cluster_arrive();
  cluster_wait();
}
PLANT(relaxed_cluster_barrier, const int*, int*);

// A block's shared memory ends with it, though a neighbour may still read.
template <bool kBug>
__global__ void neighbour_leaves_early(const int* in, int* out) {
  __shared__ int tile[64];
  int tid = threadIdx.x;
  tile[tid] = in[blockIdx.x * 64 + tid];
  cluster_arrive();
  cluster_wait();
  if (cluster_rank() == 0) {
    int sum = 0;
    for (int i = 0; i < 64; ++i) {
      int value = load_cluster(map_to_rank(&tile[(tid + i) % 64], 1));  // BUG: use_after_free | shared_race
      sum += (i + 1) * value;
    }
    out[blockIdx.x / 2 * 64 + tid] = sum;
  }
  if (!kBug) {
    cluster_arrive();
    cluster_wait();
  }
}  // BUG: use_after_free | shared_race
PLANT(neighbour_leaves_early, const int*, int*);

template <bool kBug>
__global__ void cluster_barrier_arrives_twice(const int* in, int* out) {
  __shared__ int tile[64];
  int tid = threadIdx.x, i = blockIdx.x * 64 + tid;
  tile[tid] = in[i];
  cluster_arrive();
  if (kBug) cluster_arrive();  // BUG: barrier_misuse
  cluster_wait();
  out[i] = load_cluster(map_to_rank(&tile[63 - tid], cluster_rank() ^ 1));
  cluster_arrive();
  cluster_wait();
}
PLANT(cluster_barrier_arrives_twice, const int*, int*);

// Block 1 waits for a message that block 0 sends only after a cluster barrier.
template <bool kBug>
__global__ void cluster_barrier_skipped(const int* in, int* out) {
  __shared__ uint64_t message;
  int tid = threadIdx.x;
  uint32_t rank = cluster_rank();
  if (tid == 0) mbarrier_init(&message, 1);
  cluster_arrive();
  cluster_wait();
  if (!kBug || rank == 0) {
    cluster_arrive();
    cluster_wait();  // BUG: deadlock
  }
  if (rank == 0) {
    if (tid == 0) mbarrier_arrive_cluster(map_to_rank(&message, 1));
  } else {
    mbarrier_wait_cluster(&message, 0);  // BUG: deadlock
  }
  out[blockIdx.x * 64 + tid] = in[blockIdx.x * 64 + tid] + rank;
  cluster_arrive();
  cluster_wait();
}
PLANT(cluster_barrier_skipped, const int*, int*);

template <bool kBug>
__global__ void rank_outside_cluster(const int* in, int* out) {
  __shared__ int tile[64];
  int tid = threadIdx.x, i = blockIdx.x * 64 + tid;
  tile[tid] = in[i];
  cluster_arrive();
  cluster_wait();
  uint32_t right = kBug ? cluster_rank() + 1 : (cluster_rank() + 1) % 2;
  out[i] = load_cluster(map_to_rank(&tile[tid], right));  // BUG: bad_argument | out_of_bounds
  cluster_arrive();
  cluster_wait();
}
PLANT(rank_outside_cluster, const int*, int*);

// The leader waits for one arrival of each block; the bug's neighbour arrives at its own barrier.
template <bool kBug>
__global__ void arrives_at_its_own(const int* in, int* out) {
  __shared__ uint64_t ready;
  __shared__ int value;
  int tid = threadIdx.x;
  if (tid == 0) {
    mbarrier_init(&ready, 2);
    value = in[blockIdx.x];
  }
  cluster_arrive();
  cluster_wait();
  if (tid == 0) mbarrier_arrive_cluster(map_to_rank(&ready, kBug ? cluster_rank() : 0));
  if (cluster_rank() == 0) {
    mbarrier_wait_cluster(&ready, 0);  // BUG: deadlock
    out[blockIdx.x / 2 * 64 + tid] = value + load_cluster(map_to_rank(&value, 1));
  }
  cluster_arrive();
  cluster_wait();
}
PLANT(arrives_at_its_own, const int*, int*);

// Block 0 writes into block 1, then arrives there.
template <bool kBug>
__global__ void arrives_before_storing(const int* in, int* out) {
  __shared__ uint64_t full;
  __shared__ int tile[64];
  int tid = threadIdx.x;
  tile[tid] = 0;
  if (tid == 0) mbarrier_init(&full, 64);
  cluster_arrive();
  cluster_wait();
  if (cluster_rank() == 0) {
    if (kBug) mbarrier_arrive_cluster(map_to_rank(&full, 1));
    store_cluster(map_to_rank(&tile[tid], 1), in[tid]);  // BUG: shared_race
    if (!kBug) mbarrier_arrive_cluster(map_to_rank(&full, 1));
  } else {
    mbarrier_wait_cluster(&full, 0);
    out[tid] = tile[63 - tid];  // BUG: shared_race
  }
  cluster_arrive();
  cluster_wait();
}
PLANT(arrives_before_storing, const int*, int*);

// Stores that count their bytes at the receiver.
constexpr int kReadTooEarly = 1, kExpectTooMuch = 2, kNotClustered = 3;

template <int kBug>
__global__ void remote_stores(const int* in, int* out) {
  __shared__ uint64_t full;
  __shared__ int tile[64];
  int tid = threadIdx.x;
  if (tid == 0) {
    mbarrier_init(&full, 1);
    mbarrier_arrive_expect(&full, kBug == kExpectTooMuch ? 260 : 256);
  }
  if (kBug == kNotClustered) {
    __syncthreads();
  } else {
    cluster_arrive();
    cluster_wait();
  }
  uint32_t other = cluster_rank() ^ 1;
  // clang-format off
  store_async(map_to_rank(&tile[tid], other), in[blockIdx.x * 64 + tid], map_to_rank(&full, other));  // BUG(kReadTooEarly): async_too_early | shared_race  // BUG(kNotClustered): mbarrier_misuse | shared_race
  if (kBug != kReadTooEarly) mbarrier_wait_cluster(&full, 0);  // BUG(kExpectTooMuch): deadlock  // BUG(kNotClustered): shared_race | mbarrier_misuse
  out[blockIdx.x * 64 + tid] = tile[63 - tid];  // BUG(kReadTooEarly): async_too_early | uninitialised_shared
  // clang-format on
  cluster_arrive();
  cluster_wait();
}
PLANT_VARIANT(remote_stores, kSound, const int*, int*);
PLANT_VARIANT(remote_stores, kReadTooEarly, const int*, int*);
PLANT_VARIANT(remote_stores, kExpectTooMuch, const int*, int*);
PLANT_VARIANT(remote_stores, kNotClustered, const int*, int*);

// Bins spread over the cluster, filled with atomics through generic addresses.
template <bool kBug>
__global__ void shared_histogram(const int* in, int* out) {
  namespace cg = cooperative_groups;
  __shared__ int bins[8];
  cg::cluster_group cluster = cg::this_cluster();
  int tid = threadIdx.x;
  if (tid < 8) bins[tid] = 0;  // BUG: shared_race
  if (kBug) {
    __syncthreads();
  } else {
    cluster.sync();
  }
  int bin = in[blockIdx.x * 64 + tid];
  atomicAdd(cluster.map_shared_rank(&bins[bin % 8], bin / 8), 1);  // BUG: shared_race | uninitialised_shared
  cluster.sync();
  if (tid < 8) out[cluster.block_rank() * 8 + tid] = bins[tid];
}
PLANT(shared_histogram, const int*, int*);

// The host's cluster has more blocks than any chip runs together.
template <bool kBug>
__global__ void cluster_over_limit(const int* in, int* out) {  // BUG: launch_limit
  out[blockIdx.x * 64 + threadIdx.x] = in[blockIdx.x * 64 + threadIdx.x] + static_cast<int>(cluster_rank());
}
PLANT(cluster_over_limit, const int*, int*);

// The host's cluster is not the one that the kernel was made for.
template <bool kBug>
__global__ void __cluster_dims__(2) cluster_of_another_size(const int* in, int* out) {  // BUG: launch_limit
  out[blockIdx.x * 64 + threadIdx.x] = in[blockIdx.x * 64 + threadIdx.x] - static_cast<int>(cluster_rank());
}
PLANT(cluster_of_another_size, const int*, int*);

// Each block loads half of a tile into both.
constexpr int kReleaseOwnOnly = 1, kExpectHalf = 2, kNoBarrierAtStart = 3, kNoBarrierAtEnd = 4, kOwnMask = 5;

template <int kBug>
__global__ void __launch_bounds__(128) multicast(const __grid_constant__ CUtensorMap map, int* out, int rounds) {
  constexpr int kStages = 2;
  __shared__ alignas(128) int tile[kStages][256];
  __shared__ uint64_t full[kStages], empty[kStages];
  int tid = threadIdx.x, sum = 0;
  uint32_t rank = cluster_rank();
  if (tid == 0) {
    for (int stage = 0; stage < kStages; ++stage) {
      mbarrier_init(&full[stage], 1);   // BUG(kNoBarrierAtStart): shared_race | mbarrier_misuse | async_too_early
      mbarrier_init(&empty[stage], 2);  // BUG(kNoBarrierAtStart): shared_race | mbarrier_misuse
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    fence_async_proxy();
  }
  if (kBug == kNoBarrierAtStart) {
    __syncthreads();
  } else {
    cluster_arrive();
    cluster_wait();
  }
  for (int i = 0; i < rounds; ++i) {
    int stage = i % kStages, phase = i / kStages % 2;
    if (tid == 0) {
      // clang-format off
      mbarrier_wait_cluster(&empty[stage], phase ^ 1);  // BUG(kExpectHalf): deadlock  // BUG(kReleaseOwnOnly): deadlock  // BUG(kOwnMask): deadlock
      mbarrier_arrive_expect(&full[stage], kBug == kExpectHalf ? 512 : 1024);  // BUG(kExpectHalf): mbarrier_misuse
      tma_load_multicast(&tile[stage][rank * 128], &map, 0, i * 8 + rank * 4, &full[stage], kBug == kOwnMask ? 1 << rank : 3);  // BUG(kReleaseOwnOnly): async_too_early | shared_race | mbarrier_misuse  // BUG(kExpectHalf): mbarrier_misuse | async_too_early | shared_race  // BUG(kNoBarrierAtStart): mbarrier_misuse | shared_race | uninitialised_shared
      // clang-format on
    }
    // clang-format off
    mbarrier_try_wait(&full[stage], phase);  // BUG(kExpectHalf): mbarrier_misuse | deadlock  // BUG(kReleaseOwnOnly): deadlock  // BUG(kOwnMask): deadlock
    sum += (i + 1) * (tile[stage][tid] - tile[stage][255 - tid]);  // BUG(kReleaseOwnOnly): async_too_early | shared_race  // BUG(kExpectHalf): async_too_early | uninitialised_shared
    // clang-format on
    __syncthreads();
    // clang-format off
    if (tid < 2) mbarrier_arrive_cluster(map_to_rank(&empty[stage], kBug == kReleaseOwnOnly ? rank : tid));  // BUG(kNoBarrierAtStart): mbarrier_misuse | shared_race  // BUG(kNoBarrierAtEnd): use_after_free | shared_race
    // clang-format on
  }
  out[blockIdx.x * 128 + tid] = sum;
  if (kBug != kNoBarrierAtEnd) {
    cluster_arrive();
    cluster_wait();
  }
}  // BUG(kNoBarrierAtEnd): use_after_free | shared_race | async_not_awaited
#define PLANT_MULTICAST(bug) PLANT_VARIANT(multicast, bug, const __grid_constant__ CUtensorMap, int*, int)
PLANT_MULTICAST(kSound);
PLANT_MULTICAST(kReleaseOwnOnly);
PLANT_MULTICAST(kExpectHalf);
PLANT_MULTICAST(kNoBarrierAtStart);
PLANT_MULTICAST(kNoBarrierAtEnd);
PLANT_MULTICAST(kOwnMask);
