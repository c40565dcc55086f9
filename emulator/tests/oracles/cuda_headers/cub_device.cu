// Device-wide algorithms of CUB, dispatched by CUB's own host code: it asks the CUDA runtime for the device's
// properties and occupancy and launches several kernels.
//
// Every function is called twice: with `temporary` null it returns the bytes it wants there. The result is a
// cudaError_t.
#include <cub/device/device_histogram.cuh>
#include <cub/device/device_merge_sort.cuh>
#include <cub/device/device_radix_sort.cuh>
#include <cub/device/device_reduce.cuh>
#include <cub/device/device_run_length_encode.cuh>
#include <cub/device/device_scan.cuh>
#include <cub/device/device_segmented_reduce.cuh>
#include <cub/device/device_select.cuh>

struct IsPositive {
  __device__ bool operator()(int value) const { return value > 0; }
};

struct Less {
  __device__ bool operator()(float a, float b) const { return a < b; }
};

extern "C" {

int device_sum(void* temporary, size_t* bytes, const int* in, long long* out, int n) {
  return cub::DeviceReduce::Reduce(temporary, *bytes, in, out, n, cuda::std::plus<>{}, 0LL);
}

int device_argmax(void* temporary, size_t* bytes, const float* in, float* value, long long* index, int n) {
  return cub::DeviceReduce::ArgMax(temporary, *bytes, in, value, index, static_cast<long long>(n));
}

int device_exclusive_sum(void* temporary, size_t* bytes, const int* in, int* out, int n) {
  return cub::DeviceScan::ExclusiveSum(temporary, *bytes, in, out, n);
}

int device_radix_sort_pairs(void* temporary, size_t* bytes, const unsigned* keys_in, unsigned* keys_out,
                            const int* values_in, int* values_out, int n) {
  return cub::DeviceRadixSort::SortPairs(temporary, *bytes, keys_in, keys_out, values_in, values_out, n);
}

int device_merge_sort(void* temporary, size_t* bytes, float* keys, int n) {
  return cub::DeviceMergeSort::SortKeys(temporary, *bytes, keys, n, Less{});
}

int device_select_positive(void* temporary, size_t* bytes, const int* in, int* out, int* count, int n) {
  return cub::DeviceSelect::If(temporary, *bytes, in, out, count, n, IsPositive{});
}

int device_histogram(void* temporary, size_t* bytes, const float* in, int* bins, int levels, float low, float high,
                     int n) {
  return cub::DeviceHistogram::HistogramEven(temporary, *bytes, in, bins, levels, low, high, n);
}

int device_run_lengths(void* temporary, size_t* bytes, const int* in, int* values, int* lengths, int* runs, int n) {
  return cub::DeviceRunLengthEncode::Encode(temporary, *bytes, in, values, lengths, runs, n);
}

int device_segmented_sum(void* temporary, size_t* bytes, const int* in, int* out, int segments, const int* offsets) {
  return cub::DeviceSegmentedReduce::Sum(temporary, *bytes, in, out, segments, offsets, offsets + 1);
}

}  // extern "C"
