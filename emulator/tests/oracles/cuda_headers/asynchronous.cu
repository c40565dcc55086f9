// libcu++: barriers, pipelines and asynchronous copies; atomic references in every scope and order.
#include <cooperative_groups.h>
#include <cuda/atomic>
#include <cuda/barrier>
#include <cuda/latch>
#include <cuda/pipeline>
#include <cuda/semaphore>

namespace cg = cooperative_groups;

constexpr int kStages = 3;
constexpr int kTile = 128;

// Sum of the rows of a matrix, kStages rows in flight: every thread copies its own element.
extern "C" __global__ void pipeline_per_thread(const float* in, float* out, int rows) {
  __shared__ float tile[kStages][kTile];
  auto pipe = cuda::make_pipeline();
  float sum = 0;
  int issued = 0;
  for (int row = 0; row < rows; ++row) {
    for (; issued < rows && issued < row + kStages; ++issued) {
      pipe.producer_acquire();
      cuda::memcpy_async(&tile[issued % kStages][threadIdx.x], &in[issued * kTile + threadIdx.x], sizeof(float), pipe);
      pipe.producer_commit();
    }
    pipe.consumer_wait();
    sum += tile[row % kStages][threadIdx.x];
    pipe.consumer_release();
  }
  out[threadIdx.x] = sum;
}

// The same with one pipeline of the whole block and collective copies of 16 bytes at a time.
extern "C" __global__ void pipeline_of_block(const float* in, float* out, int rows) {
  __shared__ alignas(16) float tile[kStages][kTile];
  __shared__ cuda::pipeline_shared_state<cuda::thread_scope_block, kStages> state;
  const auto block = cg::this_thread_block();
  auto pipe = cuda::make_pipeline(block, &state);
  float sum = 0;
  int issued = 0;
  for (int row = 0; row < rows; ++row) {
    for (; issued < rows && issued < row + kStages; ++issued) {
      pipe.producer_acquire();
      cuda::memcpy_async(block, tile[issued % kStages], in + issued * kTile,
                         cuda::aligned_size_t<16>(kTile * sizeof(float)), pipe);
      pipe.producer_commit();
    }
    pipe.consumer_wait();
    sum += tile[row % kStages][kTile - 1 - threadIdx.x];
    pipe.consumer_release();
  }
  out[kTile - 1 - threadIdx.x] = sum;
}

// Roles: the first half of the block copies, the second half adds.
extern "C" __global__ void pipeline_with_roles(const float* in, float* out, int rows) {
  __shared__ alignas(16) float tile[kStages][kTile];
  __shared__ cuda::pipeline_shared_state<cuda::thread_scope_block, kStages> state;
  const auto block = cg::this_thread_block();
  const bool producer = threadIdx.x < kTile;
  const int lane = threadIdx.x % kTile;
  auto pipe =
      cuda::make_pipeline(block, &state, producer ? cuda::pipeline_role::producer : cuda::pipeline_role::consumer);
  if (producer) {
    for (int row = 0; row < rows; ++row) {
      pipe.producer_acquire();
      cuda::memcpy_async(&tile[row % kStages][lane], &in[row * kTile + lane], sizeof(float), pipe);
      pipe.producer_commit();
    }
  } else {
    float sum = 0;
    for (int row = 0; row < rows; ++row) {
      pipe.consumer_wait();
      sum += tile[row % kStages][lane];
      pipe.consumer_release();
    }
    out[lane] = sum;
  }
}

// A collective copy of `bytes` into shared memory that a barrier tracks (on sm_90: a bulk copy).
extern "C" __global__ void barrier_copy(const float4* in, float4* out, int count) {
  extern __shared__ float4 buffer[];
  __shared__ cuda::barrier<cuda::thread_scope_block> barrier;
  const auto block = cg::this_thread_block();
  if (threadIdx.x == 0) init(&barrier, block.size());
  block.sync();
  for (int round = 0; round < 3; ++round) {
    cuda::memcpy_async(block, buffer, in + round * count,
                       cuda::aligned_size_t<16>(static_cast<size_t>(count) * sizeof(float4)), barrier);
    barrier.arrive_and_wait();
    for (int i = threadIdx.x; i < count; i += blockDim.x) out[round * count + i] = buffer[count - 1 - i];
    barrier.arrive_and_wait();
  }
}

// Arrive early, work, wait late; half of the threads drop out after the first phase.
extern "C" __global__ void barrier_phases(const int* in, int* out) {
  __shared__ cuda::barrier<cuda::thread_scope_block> barrier;
  __shared__ int first[128], second[64];
  if (threadIdx.x == 0) init(&barrier, blockDim.x);
  __syncthreads();
  first[threadIdx.x] = in[threadIdx.x];
  auto token = barrier.arrive();
  const int mine = in[threadIdx.x] * 2;
  barrier.wait(cuda::std::move(token));
  const int other = first[blockDim.x - 1 - threadIdx.x];
  if (threadIdx.x >= 64) {
    barrier.arrive_and_drop();
    return;
  }
  second[threadIdx.x] = mine + other;
  barrier.arrive_and_wait();
  out[threadIdx.x] = second[63 - threadIdx.x];
}

// A barrier that runs a function when its last thread arrives.
extern "C" __global__ void barrier_completion(const int* in, int* out, int rounds) {
  struct Reverse {
    int* values;
    __device__ void operator()() noexcept {
      for (int i = 0; i < 32; ++i) {
        const int low = values[i];
        values[i] = values[63 - i];
        values[63 - i] = low;
      }
    }
  };
  using Barrier = cuda::barrier<cuda::thread_scope_block, Reverse>;
  __shared__ int values[64];
  __shared__ alignas(Barrier) char storage[sizeof(Barrier)];
  auto* barrier = reinterpret_cast<Barrier*>(storage);
  if (threadIdx.x == 0) new (barrier) Barrier(64, Reverse{values});
  values[threadIdx.x] = in[threadIdx.x];
  __syncthreads();
  for (int round = 0; round < rounds; ++round) barrier->arrive_and_wait();
  out[threadIdx.x] = values[threadIdx.x];
}

// Every operation of an integer atomic_ref; all threads of the grid on one word each.
extern "C" __global__ void atomic_integers(const int* in, int* words, int* seen) {
  using Device = cuda::atomic_ref<int, cuda::thread_scope_device>;
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  seen[i] = Device(words[0]).fetch_add(1, cuda::memory_order_relaxed);
  Device(words[1]).fetch_sub(in[i], cuda::memory_order_acq_rel);
  Device(words[2]).fetch_and(in[i], cuda::memory_order_release);
  Device(words[3]).fetch_or(in[i], cuda::memory_order_acquire);
  Device(words[4]).fetch_xor(in[i], cuda::memory_order_seq_cst);
  cuda::atomic_ref<int, cuda::thread_scope_system>(words[5]).fetch_max(in[i]);
  cuda::atomic_ref<int, cuda::thread_scope_system>(words[6]).fetch_min(in[i]);
  // Product by compare-and-swap.
  Device word(words[7]);
  int expected = word.load(cuda::memory_order_relaxed);
  while (!word.compare_exchange_weak(expected, expected * (in[i] | 1), cuda::memory_order_acq_rel)) {
  }
}

// Floats, 64-bit integers and small types, which a wider compare-and-swap stands in for.
extern "C" __global__ void atomic_others(const float* in, float* real, double* wide_real, unsigned long long* wide,
                                         unsigned char* bytes, unsigned short* halves) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  cuda::atomic_ref<float, cuda::thread_scope_device>(*real).fetch_add(in[i], cuda::memory_order_relaxed);
  cuda::atomic_ref<double, cuda::thread_scope_device>(*wide_real).fetch_add(in[i], cuda::memory_order_relaxed);
  cuda::atomic_ref<unsigned long long, cuda::thread_scope_device>(*wide).fetch_add(1ull << 32);
  cuda::atomic_ref<unsigned char, cuda::thread_scope_device>(bytes[i % 8]).fetch_add(1, cuda::memory_order_relaxed);
  cuda::atomic_ref<unsigned short, cuda::thread_scope_device>(halves[i % 4]).fetch_or(1 << (i / 4 % 16));
}

// Messages from block 0 to the others: data, then a flag with release; readers acquire.
extern "C" __global__ void flag(const int* in, int* data, int* ready, int* out) {
  cuda::atomic_ref<int, cuda::thread_scope_device> flag(*ready);
  if (blockIdx.x == 0) {
    data[threadIdx.x] = in[threadIdx.x] * 3;
    __syncthreads();
    if (threadIdx.x == 0) {
      flag.store(1, cuda::memory_order_release);
      flag.notify_all();
    }
  } else {
    if (threadIdx.x == 0) flag.wait(0, cuda::memory_order_acquire);
    __syncthreads();
    out[(blockIdx.x - 1) * blockDim.x + threadIdx.x] = data[threadIdx.x];
  }
}

// A binary semaphore guards a counter that is no atomic.
extern "C" __global__ void semaphore(int* counter) {
  __shared__ cuda::binary_semaphore<cuda::thread_scope_block> mutex;
  __shared__ int count;
  if (threadIdx.x == 0) {
    new (&mutex) cuda::binary_semaphore<cuda::thread_scope_block>(1);
    count = 0;
  }
  __syncthreads();
  if (threadIdx.x % 32 == 0) {
    for (int i = 0; i < 4; ++i) {
      mutex.acquire();
      ++count;
      mutex.release();
    }
  }
  __syncthreads();
  if (threadIdx.x == 0) *counter = count;
}
