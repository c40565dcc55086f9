// Cooperative groups: tiles, coalesced and labelled groups, reductions and scans, grid and cluster barriers.
#include <cooperative_groups.h>
#include <cooperative_groups/memcpy_async.h>
#include <cooperative_groups/reduce.h>
#include <cooperative_groups/scan.h>

namespace cg = cooperative_groups;

// Sum, maximum and exclusive sum within tiles of kWidth threads, and one shuffle of each kind.
template <int kWidth>
__device__ void tile(const int* in, int* sum, int* largest, int* before, int* shuffled) {
  const auto group = cg::tiled_partition<kWidth>(cg::this_thread_block());
  const int i = cg::this_thread_block().thread_rank();
  const int mine = in[i];
  sum[i] = cg::reduce(group, mine, cg::plus<int>());
  largest[i] = cg::reduce(group, mine, cg::greater<int>());
  before[i] = cg::exclusive_scan(group, mine, cg::plus<int>());
  shuffled[i] = group.shfl(mine, kWidth - 1) + 3 * group.shfl_xor(mine, 1) + 5 * group.shfl_up(mine, 1) +
                7 * group.shfl_down(mine, 1);
}

extern "C" __global__ void tile_4(const int* in, int* sum, int* largest, int* before, int* shuffled) {
  tile<4>(in, sum, largest, before, shuffled);
}
extern "C" __global__ void tile_16(const int* in, int* sum, int* largest, int* before, int* shuffled) {
  tile<16>(in, sum, largest, before, shuffled);
}
extern "C" __global__ void tile_32(const int* in, int* sum, int* largest, int* before, int* shuffled) {
  tile<32>(in, sum, largest, before, shuffled);
}

// Tiles of more than a warp meet in shared memory.
extern "C" __global__ void tile_64(const float* in, float* sum, float* before) {
  __shared__ cg::block_tile_memory<128> memory;
  const auto block = cg::this_thread_block(memory);
  const auto group = cg::tiled_partition<64>(block);
  const int i = block.thread_rank();
  sum[i] = cg::reduce(group, in[i], cg::plus<float>());
  group.sync();
  before[i] = cg::inclusive_scan(group, in[i], cg::plus<float>());
}

// The threads with a positive item count themselves, and the group's first thread makes room for all of them.
extern "C" __global__ void compact(const int* in, int n, int* out, int* count) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n && in[i] > 0) {
    const auto active = cg::coalesced_threads();
    int first = 0;
    if (active.thread_rank() == 0) first = atomicAdd(count, active.size());
    first = active.shfl(first, 0);
    out[first + active.thread_rank()] = in[i];
  }
}

// Groups of the lanes with the same label, and of two halves by a predicate.
extern "C" __global__ void labelled(const int* label, const int* in, int* sum, int* size, int* half_sum) {
  const auto warp = cg::tiled_partition<32>(cg::this_thread_block());
  const int i = threadIdx.x;
  const auto same = cg::labeled_partition(warp, label[i]);
  sum[i] = cg::reduce(same, in[i], cg::plus<int>());
  size[i] = same.size();
  const auto half = cg::binary_partition(warp, (in[i] & 1) != 0);
  half_sum[i] = cg::reduce(half, in[i], cg::bit_xor<int>());
}

// Votes and matches of a tile.
extern "C" __global__ void votes(const int* in, unsigned* ballot, int* any, int* all, unsigned* match_any,
                                 unsigned* match_all) {
  const auto group = cg::tiled_partition<16>(cg::this_thread_block());
  const int i = threadIdx.x;
  ballot[i] = group.ballot(in[i] > 0);
  any[i] = group.any(in[i] > 2);
  all[i] = group.all(in[i] > -3);
  match_any[i] = group.match_any(in[i]);
  int same = 0;
  match_all[i] = group.match_all(in[i] > -100, same) | (same ? 0x80000000u : 0u);
}

// Reductions with other operators and types: unsigned and, or, xor and minimum; 64-bit and double sums; a user's.
struct Product {
  __device__ int operator()(int a, int b) const { return a * b; }
};

extern "C" __global__ void operators(const unsigned* in, unsigned* out, long long* wide, double* real, int* product) {
  const auto warp = cg::tiled_partition<32>(cg::this_thread_block());
  const unsigned mine = in[threadIdx.x];
  const unsigned bits_and = cg::reduce(warp, mine, cg::bit_and<unsigned>());
  const unsigned bits_or = cg::reduce(warp, mine, cg::bit_or<unsigned>());
  const unsigned bits_xor = cg::reduce(warp, mine, cg::bit_xor<unsigned>());
  const unsigned least = cg::reduce(warp, mine, cg::less<unsigned>());
  const long long sum = cg::reduce(warp, static_cast<long long>(mine) << 20, cg::plus<long long>());
  const double total = cg::reduce(warp, mine * 0.25, cg::plus<double>());
  const int all = cg::reduce(warp, static_cast<int>(mine | 1), Product());
  if (warp.thread_rank() == 0) {
    const int group = warp.meta_group_rank();
    out[4 * group] = bits_and;
    out[4 * group + 1] = bits_or;
    out[4 * group + 2] = bits_xor;
    out[4 * group + 3] = least;
    wide[group] = sum;
    real[group] = total;
    product[group] = all;
  }
}

// Two passes with a barrier of the whole grid between them: out[i] = sum of in - in[i].
extern "C" __global__ void grid_barrier(const int* in, int* total, int* out) {
  const auto grid = cg::this_grid();
  const int i = grid.thread_rank();
  const auto warp = cg::tiled_partition<32>(cg::this_thread_block());
  const int sum = cg::reduce(warp, in[i], cg::plus<int>());
  if (warp.thread_rank() == 0) atomicAdd(total, sum);
  grid.sync();
  out[i] = *total - in[i];
  grid.sync();
  if (i == 0) *total = 0;
}

// A tile of the input through shared memory by a collective copy.
extern "C" __global__ void copy_to_shared(const float* in, float* out) {
  extern __shared__ float tile[];
  const auto block = cg::this_thread_block();
  cg::memcpy_async(block, tile, in + blockIdx.x * 256, 256 * sizeof(float));
  cg::wait(block);
  for (int i = block.thread_rank(); i < 256; i += block.size()) out[blockIdx.x * 256 + i] = tile[255 - i];
}

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
// Every block of a cluster reads the item of its right neighbour, and adds into the first block's counter.
extern "C" __global__ void cluster(const int* in, int* neighbour, int* total, int* ranks) {
  __shared__ int mine[64];
  __shared__ int sum;
  const auto cluster = cg::this_cluster();
  const int i = blockIdx.x * 64 + threadIdx.x;
  mine[threadIdx.x] = in[i];
  if (threadIdx.x == 0) sum = 0;
  cluster.sync();
  const int* other = cluster.map_shared_rank(mine, (cluster.block_rank() + 1) % cluster.num_blocks());
  neighbour[i] = other[threadIdx.x];
  atomicAdd(cluster.map_shared_rank(&sum, 0), mine[threadIdx.x]);
  auto token = cluster.barrier_arrive();
  cluster.barrier_wait(cuda::std::move(token));
  if (cluster.block_rank() == 0 && threadIdx.x == 0) total[blockIdx.x / cluster.num_blocks()] = sum;
  ranks[i] = cluster.thread_rank() * 1000 + cluster.query_shared_rank(other);
}
#endif
