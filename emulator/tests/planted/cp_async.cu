// cp.async: what is pending, who may read it, who may overwrite it. sm_80.
#include "planted.cuh"

template <bool kBug>
__global__ void copy_not_awaited(const int* in, int* out) {
  __shared__ alignas(16) int tile[512];
  int* mine = tile + 4 * threadIdx.x;
  copy_16(mine, in + 4 * threadIdx.x);
  copy_commit();
  if (!kBug) copy_wait<0>();
  out[threadIdx.x] = mine[0] + mine[3];  // BUG: async_too_early
}
PLANT(copy_not_awaited, const int*, int*);

template <bool kBug>
__global__ void copy_wait_too_lax(const int* in, int* out) {
  __shared__ alignas(16) int tile[2][512];
  int first = 4 * threadIdx.x;
  copy_16(&tile[0][first], in + first);
  copy_commit();
  copy_16(&tile[1][first], in + 512 + first);
  copy_commit();
  copy_wait<1>();
  int sum = tile[0][first];
  if (!kBug) copy_wait<0>();
  out[threadIdx.x] = sum + tile[1][first + 1];  // BUG: async_too_early
}
PLANT(copy_wait_too_lax, const int*, int*);

// wait_group waits for committed groups only.
template <bool kBug>
__global__ void copy_not_committed(const int* in, int* out) {
  __shared__ alignas(16) int tile[512];
  int* mine = tile + 4 * threadIdx.x;
  copy_16(mine, in + 4 * threadIdx.x);
  if (!kBug) copy_commit();
  copy_wait<0>();
  out[threadIdx.x] = mine[0] - mine[2];  // BUG: async_too_early
}
PLANT(copy_not_committed, const int*, int*);

// Each thread waits for its own copies; those of others need a barrier too.
template <bool kBug>
__global__ void copies_of_others(const int* in, int* out) {
  __shared__ alignas(16) int tile[512];
  int tid = threadIdx.x;
  copy_16(&tile[4 * tid], in + 4 * tid);  // BUG: shared_race
  copy_commit();
  copy_wait<0>();
  if (!kBug) __syncthreads();
  out[tid] = tile[511 - 4 * tid];  // BUG: shared_race | async_too_early | uninitialised_shared
}
PLANT(copies_of_others, const int*, int*);

// Copies of four bytes: a thread may read its own word as soon as it has waited, not its neighbour's.
template <bool kBug>
__global__ void copies_of_a_neighbour(const int* in, int* out) {
  __shared__ int tile[128];
  int tid = threadIdx.x;
  copy_4(&tile[tid], in + tid);  // BUG: shared_race
  copy_commit();
  copy_wait<0>();
  out[tid] = 2 * tile[kBug ? tid ^ 1 : tid];  // BUG: shared_race | async_too_early | uninitialised_shared
}
PLANT(copies_of_a_neighbour, const int*, int*);

template <bool kBug>
__global__ void store_over_pending_copy(const int* in, int* out) {
  __shared__ alignas(16) int tile[512];
  int* mine = tile + 4 * threadIdx.x;
  copy_16(mine, in + 4 * threadIdx.x);
  copy_commit();
  if (!kBug) copy_wait<0>();
  mine[1] = 7;  // BUG: async_too_early
  if (kBug) copy_wait<0>();
  out[threadIdx.x] = mine[0] + mine[1];
}
PLANT(store_over_pending_copy, const int*, int*);

// Two copies to one place may complete in any order.
template <bool kBug>
__global__ void copy_over_pending_copy(const int* in, int* out) {
  __shared__ alignas(16) int tile[512];
  int* mine = tile + 4 * threadIdx.x;
  int sum = 0;
  for (int i = 0; i < 3; ++i) {
    copy_16(mine, in + 512 * i + 4 * threadIdx.x);  // BUG: async_too_early
    copy_commit();
    if (!kBug || i == 2) copy_wait<0>();
    if (!kBug || i == 2) sum += (i + 1) * mine[i];
  }
  out[threadIdx.x] = sum;
}
PLANT(copy_over_pending_copy, const int*, int*);

template <bool kBug>
__global__ void copy_misaligned(const int* in, int* out) {
  __shared__ alignas(16) int tile[512];
  int* mine = tile + 4 * threadIdx.x;
  copy_16(mine, in + 4 * threadIdx.x + (kBug ? 2 : 0));  // BUG: misaligned
  copy_commit();
  copy_wait<0>();
  out[threadIdx.x] = mine[0] + mine[3];
}
PLANT(copy_misaligned, const int*, int*);

// The last chunk of a ragged row: the source size must shrink, or the copy reads past the end.
template <bool kBug>
__global__ void copy_past_end(const int* in, int* out, int n) {
  __shared__ alignas(16) int tile[512];
  int first = 4 * threadIdx.x;
  int valid = kBug ? (first < n ? 16 : 0) : 4 * max(0, min(4, n - first));
  copy_16_or_zero(&tile[first], valid > 0 ? in + first : in, valid);  // BUG: out_of_bounds
  copy_commit();
  copy_wait<0>();
  out[threadIdx.x] = tile[first] + tile[first + 1] + tile[first + 2] + tile[first + 3];
}
PLANT(copy_past_end, const int*, int*, int);

// Completion through an mbarrier; the wait names the phase before the first, which counts as complete.
template <bool kBug>
__global__ void copy_mbarrier_wrong_phase(const int* in, int* out) {
  __shared__ alignas(16) int tile[512];
  __shared__ uint64_t full;
  int tid = threadIdx.x;
  if (tid == 0) mbarrier_init(&full, 128);
  __syncthreads();
  copy_16(&tile[4 * tid], in + 4 * tid);  // BUG: shared_race
  copy_arrive_noinc(&full);
  mbarrier_wait(&full, kBug ? 1 : 0);
  out[tid] = tile[511 - 4 * tid];  // BUG: async_too_early | shared_race | uninitialised_shared
}
PLANT(copy_mbarrier_wrong_phase, const int*, int*);

// Without .noinc the copies' arrivals come on top of the expected ones: each thread must arrive itself too.
template <bool kBug>
__global__ void copy_mbarrier_without_arrival(const int* in, int* out) {
  __shared__ alignas(16) int tile[512];
  __shared__ uint64_t full;
  int tid = threadIdx.x;
  if (tid == 0) mbarrier_init(&full, 128);
  __syncthreads();
  copy_16(&tile[4 * tid], in + 4 * tid);
  copy_arrive(&full);
  if (!kBug) mbarrier_arrive(&full);
  mbarrier_wait(&full, 0);  // BUG: deadlock
  out[tid] = tile[511 - 4 * tid];
}
PLANT(copy_mbarrier_without_arrival, const int*, int*);

// C = A * B^T in bf16, 32 x 32 tiles, three stages, one barrier per step of K.
constexpr int kNoBarrier = 1, kWaitTooLax = 2, kPrefetchTooFar = 3;

constexpr int kTile = 32, kStages = 3;

// 16-byte chunks of a row of 32 bf16, spread over the banks.
DEVICE __nv_bfloat16* chunk_of(__nv_bfloat16* tile, int row, int chunk) {
  return tile + row * kTile + ((chunk ^ (row / 2)) % 4) * 8;
}

template <int kBug>
__global__ void __launch_bounds__(128)
    gemm(const __nv_bfloat16* a, const __nv_bfloat16* b, float* c, int m, int n, int k) {
  __shared__ alignas(128) __nv_bfloat16 tile_a[kStages][kTile * kTile];
  __shared__ alignas(128) __nv_bfloat16 tile_b[kStages][kTile * kTile];
  int tid = threadIdx.x, lane = tid % 32, warp = tid / 32;
  int m0 = blockIdx.y * kTile, n0 = blockIdx.x * kTile, steps = k / kTile;

  auto load = [&](int step) {
    int stage = step % kStages, row = tid / 4, chunk = tid % 4;
    size_t column = static_cast<size_t>(step) * kTile + chunk * 8;
    // clang-format off
    copy_16(chunk_of(tile_a[stage], row, chunk), a + (m0 + row) * static_cast<size_t>(k) + column);  // BUG(kNoBarrier): shared_race | async_too_early  // BUG(kWaitTooLax): shared_race  // BUG(kPrefetchTooFar): shared_race | async_too_early
    copy_16(chunk_of(tile_b[stage], row, chunk), b + (n0 + row) * static_cast<size_t>(k) + column);  // BUG(kNoBarrier): shared_race | async_too_early  // BUG(kWaitTooLax): shared_race  // BUG(kPrefetchTooFar): shared_race | async_too_early
    // clang-format on
  };

  constexpr int kAhead = kBug == kPrefetchTooFar ? kStages : kStages - 1;
  for (int step = 0; step < kAhead; ++step) {
    if (step < steps) load(step);
    copy_commit();
  }
  float sum[2][4] = {};
  for (int step = 0; step < steps; ++step) {
    copy_wait<kBug == kWaitTooLax ? kAhead : kAhead - 1>();
    // Also says that all have read the stage that is loaded next.
    if (kBug != kNoBarrier) __syncthreads();
    // clang-format off
    if (step + kAhead < steps) load(step + kAhead);  // BUG(kNoBarrier): shared_race | async_too_early  // BUG(kPrefetchTooFar): shared_race | async_too_early
    // clang-format on
    copy_commit();
    __nv_bfloat16 *stage_a = tile_a[step % kStages], *stage_b = tile_b[step % kStages];
    for (int inner = 0; inner < 2; ++inner) {
      uint32_t fragment_a[4], fragment_b[4];
      int row_a = warp % 2 * 16 + lane % 16, row_b = warp / 2 * 16 + lane / 16 * 8 + lane % 8;
      // clang-format off
      load_matrix_x4(fragment_a, chunk_of(stage_a, row_a, inner * 2 + lane / 16));  // BUG(kNoBarrier): shared_race | async_too_early | uninitialised_shared  // BUG(kWaitTooLax): async_too_early | shared_race  // BUG(kPrefetchTooFar): async_too_early | shared_race
      load_matrix_x4(fragment_b, chunk_of(stage_b, row_b, inner * 2 + lane / 8 % 2));  // BUG(kNoBarrier): shared_race | async_too_early | uninitialised_shared  // BUG(kWaitTooLax): async_too_early | shared_race  // BUG(kPrefetchTooFar): async_too_early | shared_race
      // clang-format on
      mma(sum[0], fragment_a, {fragment_b[0], fragment_b[1]});
      mma(sum[1], fragment_a, {fragment_b[2], fragment_b[3]});
    }
  }
  int row = m0 + warp % 2 * 16 + lane / 4, column = n0 + warp / 2 * 16 + lane % 4 * 2;
  for (int j = 0; j < 2; ++j) {
    float* corner = c + static_cast<size_t>(row) * n + column + 8 * j;
    *reinterpret_cast<float2*>(corner) = make_float2(sum[j][0], sum[j][1]);
    *reinterpret_cast<float2*>(corner + 8 * static_cast<size_t>(n)) = make_float2(sum[j][2], sum[j][3]);
  }
}
PLANT_VARIANT(gemm, kSound, const __nv_bfloat16*, const __nv_bfloat16*, float*, int, int, int);
PLANT_VARIANT(gemm, kNoBarrier, const __nv_bfloat16*, const __nv_bfloat16*, float*, int, int, int);
PLANT_VARIANT(gemm, kWaitTooLax, const __nv_bfloat16*, const __nv_bfloat16*, float*, int, int, int);
PLANT_VARIANT(gemm, kPrefetchTooFar, const __nv_bfloat16*, const __nv_bfloat16*, float*, int, int, int);
