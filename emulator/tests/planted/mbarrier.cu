// mbarrier: life, phases, counts. sm_90a.
#include "planted.cuh"

template <bool kBug>
__global__ void mbarrier_without_init(const int* in, int* out) {
  __shared__ uint64_t full;
  __shared__ int tile[128];
  int tid = threadIdx.x;
  if (!kBug && tid == 0) mbarrier_init(&full, 128);
  __syncthreads();
  tile[tid] = in[tid];
  mbarrier_arrive(&full);  // BUG: mbarrier_misuse | uninitialised_shared
  mbarrier_try_wait(&full, 0);
  out[tid] = tile[127 - tid];
}
PLANT(mbarrier_without_init, const int*, int*);

// Other threads use the barrier with nothing that orders them after the initialisation.
template <bool kBug>
__global__ void mbarrier_init_without_barrier(const int* in, int* out) {
  __shared__ uint64_t full;
  __shared__ int tile[128];
  int tid = threadIdx.x;
  if (tid == 0) mbarrier_init(&full, 128);  // BUG: mbarrier_misuse | shared_race
  if (!kBug) __syncthreads();
  tile[tid] = in[tid];
  mbarrier_arrive(&full);  // BUG: mbarrier_misuse | shared_race | uninitialised_shared
  mbarrier_try_wait(&full, 0);
  out[tid] = tile[127 - tid];
}
PLANT(mbarrier_init_without_barrier, const int*, int*);

template <bool kBug>
__global__ void mbarrier_count_too_high(const int* in, int* out) {
  __shared__ uint64_t full;
  __shared__ int tile[128];
  int tid = threadIdx.x;
  if (tid == 0) mbarrier_init(&full, kBug ? 129 : 128);
  __syncthreads();
  tile[tid] = in[tid];
  mbarrier_arrive(&full);
  mbarrier_try_wait(&full, 0);  // BUG: deadlock
  out[tid] = tile[127 - tid];
}
PLANT(mbarrier_count_too_high, const int*, int*);

// The phase ends before the last warp's arrivals.
template <bool kBug>
__global__ void mbarrier_count_too_low(const int* in, int* out) {
  __shared__ uint64_t full;
  __shared__ int tile[128];
  int tid = threadIdx.x;
  tile[tid] = 0;
  if (tid == 0) mbarrier_init(&full, kBug ? 96 : 128);
  __syncthreads();
  tile[tid] = in[tid];  // BUG: shared_race
  mbarrier_arrive(&full);
  mbarrier_try_wait(&full, 0);
  out[tid] = tile[127 - tid];  // BUG: shared_race
}
PLANT(mbarrier_count_too_low, const int*, int*);

// More arrivals in one phase than the barrier expects; or, when the greedy warp is first, a phase that ends too soon.
template <bool kBug>
__global__ void mbarrier_too_many_arrivals(const int* in, int* out) {
  __shared__ uint64_t full;
  __shared__ int tile[64];
  int tid = threadIdx.x;
  if (tid == 0) mbarrier_init(&full, 64);
  __syncthreads();
  tile[tid] = in[tid];  // BUG: shared_race
  __syncwarp();
  if (tid % 32 == 0) mbarrier_arrive_many(&full, kBug && tid == 32 ? 64 : 32);  // BUG: mbarrier_misuse
  mbarrier_try_wait(&full, 0);
  out[tid] = tile[63 - tid];  // BUG: shared_race | uninitialised_shared
}
PLANT(mbarrier_too_many_arrivals, const int*, int*);

// A count of nought.
template <bool kBug>
__global__ void mbarrier_bad_count(const int* in, int* out, uint32_t threads) {
  __shared__ uint64_t full;
  __shared__ int tile[64];
  int tid = threadIdx.x;
  if (tid == 0) mbarrier_init(&full, kBug ? threads - 64 : threads);  // BUG: bad_argument | mbarrier_misuse
  __syncthreads();
  tile[tid] = in[tid];
  mbarrier_arrive(&full);
  mbarrier_try_wait(&full, 0);
  out[tid] = tile[63 - tid];
}
PLANT(mbarrier_bad_count, const int*, int*, uint32_t);

// Rounds that reuse two buffers; the bug waits with the parity of the round before.
template <bool kBug>
__global__ void mbarrier_wrong_parity(const int* in, int* out) {
  __shared__ uint64_t full;
  __shared__ int tile[2][128];
  int tid = threadIdx.x, sum = 0;
  tile[0][tid] = tile[1][tid] = 0;
  if (tid == 0) mbarrier_init(&full, 128);
  __syncthreads();
  for (int i = 0; i < 6; ++i) {
    tile[i % 2][tid] = in[i * 128 + tid];  // BUG: shared_race
    mbarrier_arrive(&full);
    mbarrier_try_wait(&full, kBug ? (i + 1) % 2 : i % 2);
    sum += (i + 1) * tile[i % 2][127 - tid];  // BUG: shared_race
  }
  out[tid] = sum;
}
PLANT(mbarrier_wrong_parity, const int*, int*);

// The state that an arrival returned; the bug keeps that of the first round.
template <bool kBug>
__global__ void mbarrier_stale_state(const int* in, int* out) {
  __shared__ uint64_t full;
  __shared__ int tile[2][128];
  int tid = threadIdx.x, sum = 0;
  tile[0][tid] = tile[1][tid] = 0;
  if (tid == 0) mbarrier_init(&full, 128);
  __syncthreads();
  uint64_t first = 0;
  for (int i = 0; i < 6; ++i) {
    tile[i % 2][tid] = in[i * 128 + tid];  // BUG: shared_race
    uint64_t state = mbarrier_arrive(&full);
    if (i == 0) first = state;
    mbarrier_wait_state(&full, kBug ? first : state);  // BUG: mbarrier_misuse
    sum += (i + 1) * tile[i % 2][127 - tid];           // BUG: shared_race
  }
  out[tid] = sum;
}
PLANT(mbarrier_stale_state, const int*, int*);

// Half of the threads take part in the first round only; the barrier must be told.
template <bool kBug>
__global__ void mbarrier_leave_without_drop(const int* in, int* out) {
  __shared__ uint64_t full;
  __shared__ int tile[2][128];
  int tid = threadIdx.x;
  if (tid == 0) mbarrier_init(&full, 128);
  __syncthreads();
  tile[0][tid] = in[tid];
  if (tid >= 64) {
    if (kBug) {
      mbarrier_arrive(&full);
    } else {
      mbarrier_arrive_drop(&full);
    }
    return;
  }
  mbarrier_arrive(&full);
  mbarrier_try_wait(&full, 0);
  tile[1][tid] = tile[0][127 - tid];
  mbarrier_arrive(&full);
  mbarrier_try_wait(&full, 1);  // BUG: deadlock
  out[tid] = tile[1][63 - tid];
}
PLANT(mbarrier_leave_without_drop, const int*, int*);

template <bool kBug>
__global__ void mbarrier_init_twice(const int* in, int* out) {
  __shared__ uint64_t full;
  __shared__ int tile[2][64];
  int tid = threadIdx.x, sum = 0;
  for (int i = 0; i < 2; ++i) {
    if (tid == 0) mbarrier_init(&full, 64);  // BUG: mbarrier_misuse
    __syncthreads();
    tile[i][tid] = in[i * 64 + tid];
    mbarrier_arrive(&full);
    mbarrier_try_wait(&full, 0);
    sum += (i + 1) * tile[i][63 - tid];
    __syncthreads();
    if (!kBug && tid == 0) mbarrier_inval(&full);
  }
  out[tid] = sum;
}
PLANT(mbarrier_init_twice, const int*, int*);

template <bool kBug>
__global__ void mbarrier_used_after_inval(const int* in, int* out) {
  __shared__ uint64_t full;
  __shared__ int tile[2][64];
  int tid = threadIdx.x, sum = 0;
  if (tid == 0) mbarrier_init(&full, 64);
  __syncthreads();
  for (int i = 0; i < 2; ++i) {
    tile[i][tid] = in[i * 64 + tid];
    mbarrier_arrive(&full);  // BUG: mbarrier_misuse
    mbarrier_try_wait(&full, i);
    sum += (i + 1) * tile[i][63 - tid];
    __syncthreads();
    if (tid == 0 && i == (kBug ? 0 : 1)) mbarrier_inval(&full);
    __syncthreads();
  }
  out[tid] = sum;
}
PLANT(mbarrier_used_after_inval, const int*, int*);

// Ordinary stores clear the tile, and one row more: the barrier.
template <bool kBug>
__global__ void mbarrier_overwritten(const int* in, int* out) {
  struct Shared {
    int tile[64];
    uint64_t full;
  };
  __shared__ Shared shared;
  int tid = threadIdx.x;
  if (tid == 0) mbarrier_init(&shared.full, 64);
  __syncthreads();
  int* words = reinterpret_cast<int*>(&shared);
  for (int i = tid; i < (kBug ? 66 : 64); i += 64) words[i] = in[i % 64];  // BUG: mbarrier_misuse
  __syncthreads();
  mbarrier_arrive(&shared.full);
  mbarrier_try_wait(&shared.full, 0);
  out[tid] = shared.tile[63 - tid];
}
PLANT(mbarrier_overwritten, const int*, int*);

// A ring of three stages between two producer warps and two consumer warps, with ordinary stores.
constexpr int kSkipEmptyWait = 1, kSkipFullWait = 2, kReleaseBeforeReading = 3, kPhaseNotFlipped = 4;

template <int kBug>
__global__ void ring(const int* in, int* out, int rounds) {
  constexpr int kStages = 3;
  __shared__ uint64_t full[kStages], empty[kStages];
  __shared__ int tile[kStages][64];
  int lane = threadIdx.x % 64;
  for (int stage = 0; stage < kStages; ++stage) {
    if (threadIdx.x < 64) tile[stage][lane] = 0;
    if (threadIdx.x == 0) {
      mbarrier_init(&full[stage], 64);
      mbarrier_init(&empty[stage], 64);
    }
  }
  __syncthreads();
  if (threadIdx.x < 64) {
    for (int i = 0; i < rounds; ++i) {
      int stage = i % kStages, phase = i / kStages % 2;
      // clang-format off
      if (kBug != kSkipEmptyWait) mbarrier_try_wait(&empty[stage], phase ^ 1);  // BUG(kSkipFullWait): deadlock  // BUG(kPhaseNotFlipped): deadlock
      tile[stage][lane] = in[i * 64 + lane];  // BUG(kSkipEmptyWait): shared_race  // BUG(kSkipFullWait): shared_race  // BUG(kReleaseBeforeReading): shared_race  // BUG(kPhaseNotFlipped): shared_race
      // clang-format on
      mbarrier_arrive(&full[stage]);
    }
  } else {
    int sum = 0;
    for (int i = 0; i < rounds; ++i) {
      int stage = i % kStages, phase = kBug == kPhaseNotFlipped ? 0 : i / kStages % 2;
      // clang-format off
      if (kBug != kSkipFullWait) mbarrier_try_wait(&full[stage], phase);  // BUG(kSkipEmptyWait): deadlock  // BUG(kPhaseNotFlipped): deadlock
      // clang-format on
      if (kBug == kReleaseBeforeReading) mbarrier_arrive(&empty[stage]);
      // clang-format off
      sum += (i + 1) * tile[stage][63 - lane];  // BUG(kSkipEmptyWait): shared_race  // BUG(kSkipFullWait): shared_race  // BUG(kReleaseBeforeReading): shared_race  // BUG(kPhaseNotFlipped): shared_race
      // clang-format on
      if (kBug != kReleaseBeforeReading) mbarrier_arrive(&empty[stage]);
    }
    out[lane] = sum;
  }
}
PLANT_VARIANT(ring, kSound, const int*, int*, int);
PLANT_VARIANT(ring, kSkipEmptyWait, const int*, int*, int);
PLANT_VARIANT(ring, kSkipFullWait, const int*, int*, int);
PLANT_VARIANT(ring, kReleaseBeforeReading, const int*, int*, int);
PLANT_VARIANT(ring, kPhaseNotFlipped, const int*, int*, int);
