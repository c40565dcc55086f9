// Programmatic dependent launches: the second grid starts before the first has ended. sm_90a.
#include "planted.cuh"

// Stage 0 lets its successor start and writes afterwards; stage 1 must wait before it reads.
template <bool kBug>
__global__ void read_before_wait(const int* in, int* middle, int* out, int stage) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (stage == 0) {
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
    middle[i] = 2 * in[i];
  } else {
    if (!kBug) asm volatile("griddepcontrol.wait;" ::: "memory");
    out[i] = middle[i] + 1;  // BUG: global_race | async_too_early | uninitialised_global
  }
}
PLANT(read_before_wait, const int*, int*, int*, int);

// The successor overwrites what the first grid still reads.
template <bool kBug>
__global__ void write_before_wait(int* values, int* out, int stage) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (stage == 0) {
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
    out[i] = values[i] + 1;
  } else {
    if (!kBug) asm volatile("griddepcontrol.wait;" ::: "memory");
    values[i] = -1;  // BUG: global_race | async_too_early
  }
}
PLANT(write_before_wait, int*, int*, int);
