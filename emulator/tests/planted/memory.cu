// Accesses outside what the kernel may touch, badly aligned, or to bytes that nothing wrote; traps and limits.
#include <cassert>

#include "planted.cuh"

template <bool kBug>
__global__ void global_read_past_end(const int* in, int* out, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < (kBug ? n : n - 1)) out[i] = in[i + 1] - in[i];  // BUG: out_of_bounds
}
PLANT(global_read_past_end, const int*, int*, int);

template <bool kBug>
__global__ void global_write_past_end(const int* in, int* out, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (kBug ? i <= n : i < n) out[i] = in[i / 2];  // BUG: out_of_bounds
}
PLANT(global_write_past_end, const int*, int*, int);

template <bool kBug>
__global__ void global_negative_index(const int* in, int* out, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  int left = kBug || i > 0 ? in[i - 1] : 0;  // BUG: out_of_bounds
  out[i] = in[i] - left;
}
PLANT(global_negative_index, const int*, int*, int);

// An atomic to the bin that counts what fits nowhere, which has no room.
template <bool kBug>
__global__ void atomic_past_end(const int* in, int* bins, int num_bins) {
  int bin = in[threadIdx.x];
  if (kBug ? bin <= num_bins : bin < num_bins) atomicAdd(&bins[bin], 1);  // BUG: out_of_bounds
}
PLANT(atomic_past_end, const int*, int*, int);

template <bool kBug>
__global__ void shared_static_past_end(const int* in, int* out) {
  __shared__ int tile[64];
  int tid = threadIdx.x;
  tile[kBug ? tid + 1 : (tid + 1) % 64] = in[tid];  // BUG: out_of_bounds
  __syncthreads();
  out[tid] = tile[tid];
}
PLANT(shared_static_past_end, const int*, int*);

// Rows padded in the index and not in the size.
template <bool kBug>
__global__ void shared_dynamic_past_end(const int* in, int* out) {
  extern __shared__ int rows[];
  int row = threadIdx.x / 8, column = threadIdx.x % 8;
  constexpr int kPitch = kBug ? 9 : 8;
  rows[row * kPitch + column] = in[threadIdx.x];  // BUG: out_of_bounds
  __syncthreads();
  out[threadIdx.x] = rows[column * kPitch + row];
}
PLANT(shared_dynamic_past_end, const int*, int*);

template <bool kBug>
__global__ void local_index_past_end(const int* in, int* out) {
  int squares[8];
  for (int i = 0; i < 8; ++i) squares[i] = i * i;
  out[threadIdx.x] = squares[in[threadIdx.x] + (kBug ? 1 : 0)];  // BUG: out_of_bounds
}
PLANT(local_index_past_end, const int*, int*);

__constant__ int powers[4] = {1, 10, 100, 1000};

template <bool kBug>
__global__ void constant_past_end(const int* in, int* out) {
  out[threadIdx.x] = powers[in[threadIdx.x] + (kBug ? 1 : 0)];  // BUG: out_of_bounds
}
PLANT(constant_past_end, const int*, int*);

template <bool kBug>
__global__ void misaligned_float4(const float* in, float* out) {
  float4 value = *reinterpret_cast<const float4*>(in + 4 * threadIdx.x + (kBug ? 1 : 0));  // BUG: misaligned
  out[threadIdx.x] = value.x + value.y + value.z + value.w;
}
PLANT(misaligned_float4, const float*, float*);

// Records of 12 bytes whose 8-byte field needs 16.
template <bool kBug>
__global__ void misaligned_shared(const int* in, int* out) {
  __shared__ alignas(16) unsigned char records[64 * 16];
  constexpr int kRecord = kBug ? 12 : 16;
  int tid = threadIdx.x;
  *reinterpret_cast<long long*>(records + tid * kRecord) = in[tid];  // BUG: misaligned
  __syncthreads();
  out[tid] = static_cast<int>(*reinterpret_cast<const long long*>(records + (63 - tid) * kRecord));
}
PLANT(misaligned_shared, const int*, int*);

// The host frees what the table points to before the second launch.
template <bool kBug>
__global__ void use_after_free(const int* const* table, int* out) {
  const int* values = table[0];
  out[threadIdx.x] = values[threadIdx.x];  // BUG: use_after_free
}
PLANT(use_after_free, const int* const*, int*);

// A stencil that forgets the right halo.
template <bool kBug>
__global__ void uninitialised_shared(const int* in, int* out) {
  __shared__ int tile[66];
  int tid = threadIdx.x;
  tile[tid + 1] = in[tid + 1];
  if (tid == 0) tile[0] = in[0];
  if (!kBug && tid == 63) tile[65] = in[65];
  __syncthreads();
  out[tid] = tile[tid] + tile[tid + 1] + tile[tid + 2];  // BUG: uninitialised_shared
}
PLANT(uninitialised_shared, const int*, int*);

template <bool kBug>
__global__ void uninitialised_register(const int* in, int* out) {
  // Reported where the undefined value is made, or where it first matters.
  int value = in[threadIdx.x], sum;
  if constexpr (kBug) {
    asm volatile(
        "{ .reg .b32 start; .reg .pred positive;\n"
        "setp.gt.s32 positive, %1, 0;\n"
        "@positive mov.b32 start, 5;\n"
        "add.s32 %0, start, %1; }"
        : "=r"(sum)
        : "r"(value));  // BUG: uninitialised_register
  } else {
    asm volatile(
        "{ .reg .b32 start; .reg .pred positive;\n"
        "setp.gt.s32 positive, %1, 0;\n"
        "mov.b32 start, 5;\n"
        "@!positive mov.b32 start, 0;\n"
        "add.s32 %0, start, %1; }"
        : "=r"(sum)
        : "r"(value));
  }
  out[threadIdx.x] = sum;  // BUG: uninitialised_register
}
PLANT(uninitialised_register, const int*, int*);

template <bool kBug>
__global__ void uninitialised_local(const int* in, int* out) {
  int squares[8];
  for (int i = 0; i < (kBug ? 7 : 8); ++i) squares[i] = i * i;
  out[threadIdx.x] = squares[in[threadIdx.x]];  // BUG: uninitialised_local
}
PLANT(uninitialised_local, const int*, int*);

// Accumulates into memory fresh from the allocator.
template <bool kBug>
__global__ void uninitialised_global(const int* in, int* out) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (kBug) {
    out[i] += in[i];  // BUG: uninitialised_global
  } else {
    out[i] = in[i];
  }
}
PLANT(uninitialised_global, const int*, int*);

// Each block writes 63 of its 64 rows; the next launch reads all. Only the second launch can see it.
template <bool kBug>
__global__ void gap_between_launches(int* rows, int* out, int stage) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (stage == 0) {
    if (!kBug || threadIdx.x < 63) rows[i] = 3 * i;
  } else {
    out[i] = rows[i] + 1;  // BUG: uninitialised_global
  }
}
PLANT(gap_between_launches, int*, int*, int);

// The host asks for more shared memory than a block can have.
template <bool kBug>
__global__ void shared_over_limit(const int* in, int* out) {
  extern __shared__ int rows[];  // BUG: launch_limit
  rows[threadIdx.x] = in[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = rows[31 - threadIdx.x];
}
PLANT(shared_over_limit, const int*, int*);

// The host asks for more threads than the kernel promised.
template <bool kBug>
__global__ void __launch_bounds__(64) threads_over_limit(const int* in, int* out, int n) {  // BUG: launch_limit
  for (int i = threadIdx.x; i < n; i += blockDim.x) out[i] = 2 * in[i];
}
PLANT(threads_over_limit, const int*, int*, int);

template <bool kBug>
__global__ void trap_reached(const int* in, int* out, int limit) {
  int value = kBug ? in[threadIdx.x] : min(in[threadIdx.x], limit);
  if (value > limit) __trap();  // BUG: trap
  out[threadIdx.x] = value;
}
PLANT(trap_reached, const int*, int*, int);

template <bool kBug>
__global__ void assertion_fails(const int* in, int* out, int limit) {
  int value = kBug ? in[threadIdx.x] : min(in[threadIdx.x], limit);
  assert(value <= limit);  // BUG: trap
  out[threadIdx.x] = value;
}
PLANT(assertion_fails, const int*, int*, int);

// Whole vectors up to the end of an array whose length is no multiple of four.
template <bool kBug>
__global__ void vector_tail(const float* in, float* out, int n) {
  int i = 4 * (blockIdx.x * blockDim.x + threadIdx.x);
  if (kBug ? i < n : i + 3 < n) {
    float4 value = *reinterpret_cast<const float4*>(in + i);  // BUG: out_of_bounds
    *reinterpret_cast<float4*>(out + i) = make_float4(-value.x, -value.y, -value.z, -value.w);
  } else {
    for (; i < n; ++i) out[i] = -in[i];
  }
}
PLANT(vector_tail, const float*, float*, int);
