// Warp-wide collectives of CUB: scan, reduce, merge sort, exchange, loads and stores.
//
// Every kernel runs as one block of kThreads; kItems elements per thread where a collective takes several.
#include <cub/warp/warp_exchange.cuh>
#include <cub/warp/warp_load.cuh>
#include <cub/warp/warp_merge_sort.cuh>
#include <cub/warp/warp_reduce.cuh>
#include <cub/warp/warp_scan.cuh>
#include <cub/warp/warp_store.cuh>

constexpr int kThreads = 128;
constexpr int kItems = 4;

template <typename T, int kWidth>
__device__ void scan(const T* in, T* inclusive, T* exclusive, T* total) {
  using Scan = cub::WarpScan<T, kWidth>;
  __shared__ typename Scan::TempStorage storage[kThreads / kWidth];
  const int group = threadIdx.x / kWidth;
  T with, without, aggregate;
  Scan(storage[group]).Scan(in[threadIdx.x], with, without, T(0), cuda::std::plus<>{});
  __syncwarp();
  Scan(storage[group]).InclusiveSum(in[threadIdx.x], with, aggregate);
  inclusive[threadIdx.x] = with;
  exclusive[threadIdx.x] = without;
  total[threadIdx.x] = aggregate;
}

extern "C" __global__ void scan_int(const int* in, int* inclusive, int* exclusive, int* total) {
  scan<int, 32>(in, inclusive, exclusive, total);
}
extern "C" __global__ void scan_float_16(const float* in, float* inclusive, float* exclusive, float* total) {
  scan<float, 16>(in, inclusive, exclusive, total);
}
extern "C" __global__ void scan_wide(const long long* in, long long* inclusive, long long* exclusive,
                                     long long* total) {
  scan<long long, 32>(in, inclusive, exclusive, total);
}

template <typename T, int kWidth>
__device__ void reduce(const T* in, T* sum, T* largest) {
  using Reduce = cub::WarpReduce<T, kWidth>;
  __shared__ typename Reduce::TempStorage storage[kThreads / kWidth];
  const int group = threadIdx.x / kWidth;
  const T mine = in[threadIdx.x];
  const T total = Reduce(storage[group]).Sum(mine);
  const T best = Reduce(storage[group]).Reduce(mine, cuda::maximum<>{});
  if (threadIdx.x % kWidth == 0) {
    sum[group] = total;
    largest[group] = best;
  }
}

extern "C" __global__ void reduce_int(const int* in, int* sum, int* largest) { reduce<int, 32>(in, sum, largest); }
extern "C" __global__ void reduce_unsigned(const unsigned* in, unsigned* sum, unsigned* largest) {
  reduce<unsigned, 32>(in, sum, largest);
}
extern "C" __global__ void reduce_float(const float* in, float* sum, float* largest) {
  reduce<float, 32>(in, sum, largest);
}
extern "C" __global__ void reduce_double_8(const double* in, double* sum, double* largest) {
  reduce<double, 8>(in, sum, largest);
}

// Sums of segments that start where head is not 0; the segment's first lane gets its sum.
extern "C" __global__ void reduce_segmented(const int* in, const int* head, int* out) {
  using Reduce = cub::WarpReduce<int>;
  __shared__ typename Reduce::TempStorage storage[kThreads / 32];
  out[threadIdx.x] = Reduce(storage[threadIdx.x / 32]).HeadSegmentedSum(in[threadIdx.x], head[threadIdx.x]);
}

struct Less {
  template <typename T>
  __device__ bool operator()(const T& a, const T& b) const {
    return a < b;
  }
};

extern "C" __global__ void merge_sort(const int* keys_in, const short* values_in, int* keys_out, short* values_out) {
  using Sort = cub::WarpMergeSort<int, kItems, 32, short>;
  __shared__ typename Sort::TempStorage storage[kThreads / 32];
  int keys[kItems];
  short values[kItems];
  for (int i = 0; i < kItems; ++i) {
    keys[i] = keys_in[threadIdx.x * kItems + i];
    values[i] = values_in[threadIdx.x * kItems + i];
  }
  Sort(storage[threadIdx.x / 32]).StableSort(keys, values, Less{});
  for (int i = 0; i < kItems; ++i) {
    keys_out[threadIdx.x * kItems + i] = keys[i];
    values_out[threadIdx.x * kItems + i] = values[i];
  }
}

// Blocked in, striped out, by transposing loads and an exchange.
extern "C" __global__ void exchange(const float* in, float* out) {
  constexpr int kWidth = 16;
  using Load = cub::WarpLoad<float, kItems, cub::WARP_LOAD_TRANSPOSE, kWidth>;
  using Exchange = cub::WarpExchange<float, kItems, kWidth>;
  using Store = cub::WarpStore<float, kItems, cub::WARP_STORE_STRIPED, kWidth>;
  constexpr int kGroups = kThreads / kWidth;
  __shared__ union {
    typename Load::TempStorage load[kGroups];
    typename Exchange::TempStorage exchange[kGroups];
    typename Store::TempStorage store[kGroups];
  } storage;
  const int group = threadIdx.x / kWidth;
  float items[kItems];
  Load(storage.load[group]).Load(in + group * kWidth * kItems, items);
  __syncthreads();
  Exchange(storage.exchange[group]).BlockedToStriped(items, items);
  __syncthreads();
  Store(storage.store[group]).Store(out + group * kWidth * kItems, items);
}
