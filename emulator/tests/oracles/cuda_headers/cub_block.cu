// Block-wide collectives of CUB: scan, reduce, sort, histogram, loads and stores with transposes, run lengths.
//
// Every kernel runs as one block of kThreads per tile of kThreads * kItems elements.
#include <cub/block/block_adjacent_difference.cuh>
#include <cub/block/block_discontinuity.cuh>
#include <cub/block/block_exchange.cuh>
#include <cub/block/block_histogram.cuh>
#include <cub/block/block_load.cuh>
#include <cub/block/block_merge_sort.cuh>
#include <cub/block/block_radix_sort.cuh>
#include <cub/block/block_reduce.cuh>
#include <cub/block/block_run_length_decode.cuh>
#include <cub/block/block_scan.cuh>
#include <cub/block/block_shuffle.cuh>
#include <cub/block/block_store.cuh>

constexpr int kThreads = 128;
constexpr int kItems = 4;
constexpr int kTile = kThreads * kItems;

template <typename T>
__device__ void load_blocked(const T* in, T (&items)[kItems]) {
  for (int i = 0; i < kItems; ++i) items[i] = in[blockIdx.x * kTile + threadIdx.x * kItems + i];
}

template <typename T>
__device__ void store_blocked(T* out, const T (&items)[kItems]) {
  for (int i = 0; i < kItems; ++i) out[blockIdx.x * kTile + threadIdx.x * kItems + i] = items[i];
}

// Carries the total of the tiles so far: CUB calls it with the first warp.
struct RunningTotal {
  int total;
  __device__ int operator()(int aggregate) {
    const int before = total;
    total += aggregate;
    return before;
  }
};

template <cub::BlockScanAlgorithm kAlgorithm>
__device__ void scan(const int* in, int* exclusive, int* inclusive_max, int* aggregate) {
  using Scan = cub::BlockScan<int, kThreads, kAlgorithm>;
  __shared__ typename Scan::TempStorage storage;
  int items[kItems], sums[kItems], maxima[kItems];
  load_blocked(in, items);
  int total;
  Scan(storage).ExclusiveSum(items, sums, total);
  __syncthreads();
  Scan(storage).InclusiveScan(items, maxima, cuda::maximum<>{});
  store_blocked(exclusive, sums);
  store_blocked(inclusive_max, maxima);
  if (threadIdx.x == 0) aggregate[blockIdx.x] = total;
}

extern "C" __global__ void scan_raking(const int* in, int* exclusive, int* inclusive_max, int* aggregate) {
  scan<cub::BLOCK_SCAN_RAKING>(in, exclusive, inclusive_max, aggregate);
}
extern "C" __global__ void scan_raking_memoize(const int* in, int* exclusive, int* inclusive_max, int* aggregate) {
  scan<cub::BLOCK_SCAN_RAKING_MEMOIZE>(in, exclusive, inclusive_max, aggregate);
}
extern "C" __global__ void scan_warp_scans(const int* in, int* exclusive, int* inclusive_max, int* aggregate) {
  scan<cub::BLOCK_SCAN_WARP_SCANS>(in, exclusive, inclusive_max, aggregate);
}

extern "C" __global__ void scan_running(const int* in, int* out, int tiles) {
  using Scan = cub::BlockScan<int, kThreads>;
  __shared__ typename Scan::TempStorage storage;
  RunningTotal prefix{0};
  for (int tile = 0; tile < tiles; ++tile) {
    int items[kItems];
    load_blocked(in + tile * kTile, items);
    Scan(storage).InclusiveSum(items, items, prefix);
    __syncthreads();
    store_blocked(out + tile * kTile, items);
  }
}

template <cub::BlockReduceAlgorithm kAlgorithm>
__device__ void reduce(const int* in, int n, int* sum, int* largest, int* where) {
  using Reduce = cub::BlockReduce<int, kThreads, kAlgorithm>;
  using Pair = cub::KeyValuePair<int, int>;
  using ReducePair = cub::BlockReduce<Pair, kThreads, kAlgorithm>;
  __shared__ union {
    typename Reduce::TempStorage plain;
    typename ReducePair::TempStorage pair;
  } storage;
  const int mine = threadIdx.x < n ? in[threadIdx.x] : 0;
  const int total = Reduce(storage.plain).Sum(mine, n);
  __syncthreads();
  const int best = Reduce(storage.plain).Reduce(mine, cuda::maximum<>{}, n);
  __syncthreads();
  const Pair index = ReducePair(storage.pair).Reduce(Pair(threadIdx.x, mine), cub::ArgMax{}, n);
  if (threadIdx.x == 0) {
    *sum = total;
    *largest = best;
    *where = index.key;
  }
}

extern "C" __global__ void reduce_raking(const int* in, int n, int* sum, int* largest, int* where) {
  reduce<cub::BLOCK_REDUCE_RAKING>(in, n, sum, largest, where);
}
extern "C" __global__ void reduce_raking_commutative(const int* in, int n, int* sum, int* largest, int* where) {
  reduce<cub::BLOCK_REDUCE_RAKING_COMMUTATIVE_ONLY>(in, n, sum, largest, where);
}
extern "C" __global__ void reduce_warp_reductions(const int* in, int n, int* sum, int* largest, int* where) {
  reduce<cub::BLOCK_REDUCE_WARP_REDUCTIONS>(in, n, sum, largest, where);
}

extern "C" __global__ void radix_sort_pairs(const unsigned* keys_in, const int* values_in, unsigned* keys_out,
                                            int* values_out) {
  using Sort = cub::BlockRadixSort<unsigned, kThreads, kItems, int>;
  __shared__ typename Sort::TempStorage storage;
  unsigned keys[kItems];
  int values[kItems];
  load_blocked(keys_in, keys);
  load_blocked(values_in, values);
  Sort(storage).Sort(keys, values);
  store_blocked(keys_out, keys);
  store_blocked(values_out, values);
}

extern "C" __global__ void radix_sort_floats_descending(const float* in, float* out) {
  using Sort = cub::BlockRadixSort<float, kThreads, kItems>;
  __shared__ typename Sort::TempStorage storage;
  float keys[kItems];
  load_blocked(in, keys);
  Sort(storage).SortDescendingBlockedToStriped(keys);
  cub::StoreDirectStriped<kThreads>(threadIdx.x, out + blockIdx.x * kTile, keys);
}

extern "C" __global__ void radix_sort_wide(const long long* in, long long* out) {
  using Sort = cub::BlockRadixSort<long long, kThreads, kItems, cub::NullType, 5>;
  __shared__ typename Sort::TempStorage storage;
  long long keys[kItems];
  load_blocked(in, keys);
  Sort(storage).Sort(keys);
  store_blocked(out, keys);
}

template <cub::BlockHistogramAlgorithm kAlgorithm>
__device__ void histogram(const unsigned char* in, unsigned* out) {
  using Histogram = cub::BlockHistogram<unsigned char, kThreads, kItems, 256, kAlgorithm>;
  __shared__ typename Histogram::TempStorage storage;
  __shared__ unsigned bins[256];
  unsigned char items[kItems];
  load_blocked(in, items);
  Histogram(storage).Histogram(items, bins);
  __syncthreads();
  for (int bin = threadIdx.x; bin < 256; bin += kThreads) out[blockIdx.x * 256 + bin] = bins[bin];
}

extern "C" __global__ void histogram_sort(const unsigned char* in, unsigned* out) {
  histogram<cub::BLOCK_HISTO_SORT>(in, out);
}
extern "C" __global__ void histogram_atomic(const unsigned char* in, unsigned* out) {
  histogram<cub::BLOCK_HISTO_ATOMIC>(in, out);
}

// Loads blocked, adds the index within the tile, stores blocked; the last tile may be cut short.
template <cub::BlockLoadAlgorithm kLoad, cub::BlockStoreAlgorithm kStore>
__device__ void copy(const int* in, int* out, int n) {
  using Load = cub::BlockLoad<int, kThreads, kItems, kLoad>;
  using Store = cub::BlockStore<int, kThreads, kItems, kStore>;
  __shared__ union {
    typename Load::TempStorage load;
    typename Store::TempStorage store;
  } storage;
  const int first = blockIdx.x * kTile;
  int items[kItems];
  if (n - first >= kTile) {
    Load(storage.load).Load(in + first, items);
  } else {
    Load(storage.load).Load(in + first, items, n - first, -1);
  }
  for (int i = 0; i < kItems; ++i) items[i] += threadIdx.x * kItems + i;
  __syncthreads();
  if (n - first >= kTile) {
    Store(storage.store).Store(out + first, items);
  } else {
    Store(storage.store).Store(out + first, items, n - first);
  }
}

extern "C" __global__ void copy_direct(const int* in, int* out, int n) {
  copy<cub::BLOCK_LOAD_DIRECT, cub::BLOCK_STORE_DIRECT>(in, out, n);
}
extern "C" __global__ void copy_vectorize(const int* in, int* out, int n) {
  copy<cub::BLOCK_LOAD_VECTORIZE, cub::BLOCK_STORE_VECTORIZE>(in, out, n);
}
extern "C" __global__ void copy_transpose(const int* in, int* out, int n) {
  copy<cub::BLOCK_LOAD_TRANSPOSE, cub::BLOCK_STORE_TRANSPOSE>(in, out, n);
}
extern "C" __global__ void copy_warp_transpose(const int* in, int* out, int n) {
  copy<cub::BLOCK_LOAD_WARP_TRANSPOSE, cub::BLOCK_STORE_WARP_TRANSPOSE>(in, out, n);
}
extern "C" __global__ void copy_timesliced(const int* in, int* out, int n) {
  copy<cub::BLOCK_LOAD_WARP_TRANSPOSE_TIMESLICED, cub::BLOCK_STORE_WARP_TRANSPOSE_TIMESLICED>(in, out, n);
}

// out[rank[i]] = in[i] within the tile.
extern "C" __global__ void exchange(const int* in, const int* rank, int* out) {
  using Exchange = cub::BlockExchange<int, kThreads, kItems>;
  __shared__ typename Exchange::TempStorage storage;
  int items[kItems], ranks[kItems];
  load_blocked(in, items);
  load_blocked(rank, ranks);
  Exchange(storage).ScatterToStriped(items, ranks);
  __syncthreads();
  Exchange(storage).StripedToBlocked(items);
  store_blocked(out, items);
}

struct ByMagnitude {
  __device__ bool operator()(float a, float b) const { return fabsf(a) < fabsf(b); }
};

extern "C" __global__ void merge_sort(const float* in, float* out, int n) {
  using Sort = cub::BlockMergeSort<float, kThreads, kItems>;
  __shared__ typename Sort::TempStorage storage;
  float keys[kItems];
  load_blocked(in, keys);
  Sort(storage).StableSort(keys, ByMagnitude{}, n, 1e30f);
  store_blocked(out, keys);
}

// Heads and tails of runs of equal items, and the difference from the left neighbour.
extern "C" __global__ void neighbours(const int* in, int* heads, int* tails, int* difference) {
  using Discontinuity = cub::BlockDiscontinuity<int, kThreads>;
  using Adjacent = cub::BlockAdjacentDifference<int, kThreads>;
  __shared__ union {
    typename Discontinuity::TempStorage discontinuity;
    typename Adjacent::TempStorage adjacent;
  } storage;
  int items[kItems], head_flags[kItems], tail_flags[kItems], differences[kItems];
  load_blocked(in, items);
  Discontinuity(storage.discontinuity).FlagHeadsAndTails(head_flags, tail_flags, items, cuda::std::not_equal_to<>{});
  __syncthreads();
  Adjacent(storage.adjacent).SubtractLeft(items, differences, cuda::std::minus<>{});
  store_blocked(heads, head_flags);
  store_blocked(tails, tail_flags);
  store_blocked(difference, differences);
}

extern "C" __global__ void run_length_decode(const int* values, const unsigned* lengths, int* out, int capacity) {
  constexpr int kRuns = 2, kDecoded = 4;
  using Decode = cub::BlockRunLengthDecode<int, kThreads, kRuns, kDecoded>;
  __shared__ typename Decode::TempStorage storage;
  int run_values[kRuns];
  unsigned run_lengths[kRuns];
  for (int i = 0; i < kRuns; ++i) {
    run_values[i] = values[threadIdx.x * kRuns + i];
    run_lengths[i] = lengths[threadIdx.x * kRuns + i];
  }
  unsigned total = 0;
  Decode decode(storage, run_values, run_lengths, total);
  for (unsigned done = 0; done < total; done += kThreads * kDecoded) {
    int decoded[kDecoded];
    decode.RunLengthDecode(decoded, done);
    for (int i = 0; i < kDecoded; ++i) {
      const unsigned position = done + threadIdx.x * kDecoded + i;
      if (position < total && position < capacity) out[position] = decoded[i];
    }
    __syncthreads();
  }
}

extern "C" __global__ void shuffle(const int* in, int* rotated, int* offset) {
  using Shuffle = cub::BlockShuffle<int, kThreads>;
  __shared__ typename Shuffle::TempStorage storage;
  const int mine = in[threadIdx.x];
  int other = -1;
  Shuffle(storage).Rotate(mine, other, 5);
  rotated[threadIdx.x] = other;
  __syncthreads();
  other = -1;
  Shuffle(storage).Offset(mine, other, -3);
  offset[threadIdx.x] = other;
}
