// libcu++'s wrappers of single instructions (cuda::ptx): bulk copies, remote barriers and stores, elections.
#include <cuda/barrier>
#include <cuda/ptx>

namespace ptx = cuda::ptx;

// The address of `mine` in another block of the cluster.
template <typename T>
__device__ T* of_block(T* mine, unsigned rank) {
  return static_cast<T*>(__cluster_map_shared_rank(mine, rank));
}

// Bulk copy in, arithmetic, bulk copy out; and a bulk reduction into `sum`.
extern "C" __global__ void bulk_copy(const int* in, int* out, int* sum, int count) {
  extern __shared__ __align__(128) int buffer[];
  __shared__ uint64_t barrier;
  const uint32_t bytes = count * sizeof(int);
  if (threadIdx.x == 0) {
    ptx::mbarrier_init(&barrier, 1);
    ptx::fence_mbarrier_init(ptx::sem_release, ptx::scope_cluster);
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    ptx::cp_async_bulk(ptx::space_cluster, ptx::space_global, buffer, in + blockIdx.x * count, bytes, &barrier);
    ptx::mbarrier_arrive_expect_tx(ptx::sem_release, ptx::scope_cta, ptx::space_shared, &barrier, bytes);
  }
  while (!ptx::mbarrier_try_wait_parity(&barrier, 0)) {
  }
  for (int i = threadIdx.x; i < count; i += blockDim.x) buffer[i] = buffer[i] * 2 + i;
  ptx::fence_proxy_async(ptx::space_shared);
  __syncthreads();
  if (threadIdx.x == 0) {
    ptx::cp_async_bulk(ptx::space_global, ptx::space_shared, out + blockIdx.x * count, buffer, bytes);
    ptx::cp_reduce_async_bulk(ptx::space_global, ptx::space_shared, ptx::op_add, sum, buffer, bytes);
    ptx::cp_async_bulk_commit_group();
    ptx::cp_async_bulk_wait_group(ptx::n32_t<0>());
  }
}

// Rank r sends 16 bytes per thread to the next block of its cluster with st.async, which counts on the receiver's
// barrier; then adds 1 to a word of the first block with red.async.
extern "C" __global__ void __cluster_dims__(2, 1, 1) remote_store(const int4* in, int4* out, int* arrivals) {
  __shared__ __align__(16) int4 inbox[64];
  __shared__ uint64_t full, counted;
  __shared__ int count;
  if (threadIdx.x == 0) {
    ptx::mbarrier_init(&full, 1);
    ptx::mbarrier_init(&counted, 1);
    count = 0;
    ptx::fence_mbarrier_init(ptx::sem_release, ptx::scope_cluster);
    ptx::mbarrier_arrive_expect_tx(ptx::sem_release, ptx::scope_cta, ptx::space_shared, &full, sizeof inbox);
    ptx::mbarrier_arrive_expect_tx(ptx::sem_release, ptx::scope_cta, ptx::space_shared, &counted, 128 * sizeof(int));
  }
  ptx::barrier_cluster_arrive();
  ptx::barrier_cluster_wait();
  const unsigned rank = ptx::get_sreg_cluster_ctarank();
  const int i = blockIdx.x * 64 + threadIdx.x;
  int4 item = in[i];
  const int words[4] = {item.x, item.y, item.z, item.w};
  int4* slot = of_block(inbox, rank ^ 1);
  uint64_t* barrier = of_block(&full, rank ^ 1);
  ptx::st_async(reinterpret_cast<int*>(slot + threadIdx.x), words, barrier);
  ptx::red_async(ptx::op_add, of_block(&count, 0u), 1, of_block(&counted, 0u));
  while (!ptx::mbarrier_try_wait_parity(ptx::sem_acquire, ptx::scope_cluster, &full, 0)) {
  }
  out[i] = inbox[threadIdx.x];
  if (rank == 0) {
    while (!ptx::mbarrier_try_wait_parity(ptx::sem_acquire, ptx::scope_cluster, &counted, 0)) {
    }
    if (threadIdx.x == 0) arrivals[blockIdx.x / 2] = count;
  }
  ptx::barrier_cluster_arrive();
  ptx::barrier_cluster_wait();
}

// One bulk copy to both blocks of a cluster, each waiting on its own barrier.
extern "C" __global__ void __cluster_dims__(2, 1, 1) multicast(const int* in, int* out) {
  __shared__ __align__(128) int buffer[256];
  __shared__ uint64_t barrier;
  if (threadIdx.x == 0) {
    ptx::mbarrier_init(&barrier, 1);
    ptx::fence_mbarrier_init(ptx::sem_release, ptx::scope_cluster);
    ptx::mbarrier_arrive_expect_tx(ptx::sem_release, ptx::scope_cta, ptx::space_shared, &barrier, sizeof buffer);
  }
  ptx::barrier_cluster_arrive();
  ptx::barrier_cluster_wait();
  if (ptx::get_sreg_cluster_ctarank() == 0 && threadIdx.x == 0) {
    ptx::cp_async_bulk(ptx::space_cluster, ptx::space_global, buffer, in, sizeof buffer, &barrier, uint16_t{3});
  }
  while (!ptx::mbarrier_try_wait_parity(&barrier, 0)) {
  }
  for (int i = threadIdx.x; i < 256; i += blockDim.x) out[blockIdx.x * 256 + i] = buffer[i] + blockIdx.x;
  ptx::barrier_cluster_arrive();
  ptx::barrier_cluster_wait();
}

// Copies from shared memory to shared memory of the other block.
extern "C" __global__ void __cluster_dims__(2, 1, 1) shared_to_shared(const int* in, int* out) {
  __shared__ __align__(128) int source[64];
  __shared__ __align__(128) int target[64];
  __shared__ uint64_t barrier;
  source[threadIdx.x] = in[blockIdx.x * 64 + threadIdx.x];
  if (threadIdx.x == 0) {
    ptx::mbarrier_init(&barrier, 1);
    ptx::fence_mbarrier_init(ptx::sem_release, ptx::scope_cluster);
    ptx::mbarrier_arrive_expect_tx(ptx::sem_release, ptx::scope_cta, ptx::space_shared, &barrier, sizeof target);
  }
  ptx::fence_proxy_async(ptx::space_shared);
  ptx::barrier_cluster_arrive();
  ptx::barrier_cluster_wait();
  if (threadIdx.x == 0) {
    const unsigned other = ptx::get_sreg_cluster_ctarank() ^ 1;
    ptx::cp_async_bulk(ptx::space_cluster, ptx::space_shared, of_block(target, other), source, sizeof source,
                       of_block(&barrier, other));
  }
  while (!ptx::mbarrier_try_wait_parity(ptx::sem_acquire, ptx::scope_cluster, &barrier, 0)) {
  }
  out[blockIdx.x * 64 + threadIdx.x] = target[threadIdx.x];
  ptx::barrier_cluster_arrive();
  ptx::barrier_cluster_wait();
}

// The special registers that have wrappers.
extern "C" __global__ void registers(unsigned* out) {
  unsigned* row = out + (blockIdx.x * blockDim.x + threadIdx.x) * 12;
  row[0] = ptx::get_sreg_tid_x();
  row[1] = ptx::get_sreg_ntid_x();
  row[2] = ptx::get_sreg_laneid();
  row[3] = ptx::get_sreg_ctaid_x();
  row[4] = ptx::get_sreg_nctaid_x();
  row[5] = ptx::get_sreg_lanemask_eq();
  row[6] = ptx::get_sreg_lanemask_le();
  row[7] = ptx::get_sreg_lanemask_lt();
  row[8] = ptx::get_sreg_lanemask_ge();
  row[9] = ptx::get_sreg_lanemask_gt();
  row[10] = ptx::get_sreg_dynamic_smem_size();
  row[11] = ptx::get_sreg_warpid();
}
