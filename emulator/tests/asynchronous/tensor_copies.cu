// Tensor copies of every rank. Shared memory is shown byte by byte, so that tests see where each element lies.
#include <cuda.h>

#include "ptx.cuh"

struct Coordinates {
  int32_t at[5];
};

#define LOAD(N, SPACE, LIST, ...)                                                                   \
  asm volatile("cp.async.bulk.tensor." N ".shared::" SPACE                                          \
               ".global.tile.mbarrier::complete_tx::bytes [%0], [%1, {" LIST "}], [%2];" ::"r"(to), \
               "l"(map), "r"(bar), __VA_ARGS__                                                      \
               : "memory")

DEVICE void load(int rank, uint32_t to, const CUtensorMap* map, const Coordinates& c, uint32_t bar) {
  switch (rank) {
    case 1:
      LOAD("1d", "cluster", "%3", "r"(c.at[0]));
      break;
    case 2:
      LOAD("2d", "cluster", "%3, %4", "r"(c.at[0]), "r"(c.at[1]));
      break;
    case 3:
      LOAD("3d", "cluster", "%3, %4, %5", "r"(c.at[0]), "r"(c.at[1]), "r"(c.at[2]));
      break;
    case 4:
      LOAD("4d", "cta", "%3, %4, %5, %6", "r"(c.at[0]), "r"(c.at[1]), "r"(c.at[2]), "r"(c.at[3]));
      break;
    case 5:
      LOAD("5d", "cta", "%3, %4, %5, %6, %7", "r"(c.at[0]), "r"(c.at[1]), "r"(c.at[2]), "r"(c.at[3]), "r"(c.at[4]));
      break;
  }
}

#define STORE(OP, N, LIST, ...) \
  asm volatile(OP "." N ".bulk_group [%0, {" LIST "}], [%1];" ::"l"(map), "r"(from), __VA_ARGS__ : "memory")
#define STORES(OP, MODE)                                                                                      \
  switch (rank) {                                                                                             \
    case 1:                                                                                                   \
      STORE(OP, "1d.global.shared::cta" MODE, "%2", "r"(c.at[0]));                                            \
      break;                                                                                                  \
    case 2:                                                                                                   \
      STORE(OP, "2d.global.shared::cta" MODE, "%2, %3", "r"(c.at[0]), "r"(c.at[1]));                          \
      break;                                                                                                  \
    case 3:                                                                                                   \
      STORE(OP, "3d.global.shared::cta" MODE, "%2, %3, %4", "r"(c.at[0]), "r"(c.at[1]), "r"(c.at[2]));        \
      break;                                                                                                  \
    case 4:                                                                                                   \
      STORE(OP, "4d.global.shared::cta" MODE, "%2, %3, %4, %5", "r"(c.at[0]), "r"(c.at[1]), "r"(c.at[2]),     \
            "r"(c.at[3]));                                                                                    \
      break;                                                                                                  \
    case 5:                                                                                                   \
      STORE(OP, "5d.global.shared::cta" MODE, "%2, %3, %4, %5, %6", "r"(c.at[0]), "r"(c.at[1]), "r"(c.at[2]), \
            "r"(c.at[3]), "r"(c.at[4]));                                                                      \
      break;                                                                                                  \
  }

// out[0 .. bytes) = the box as it lies in shared memory, at an address that is a multiple of 1024 plus `skew`.
extern "C" __global__ void load_box(const __grid_constant__ CUtensorMap map, int rank, Coordinates c, int bytes,
                                    int skew, uint8_t* out) {
  extern __shared__ uint8_t shared[];
  __shared__ alignas(8) uint64_t bar;
  const uint32_t base = ((shared_address(shared) + 1023) & ~1023u) + skew;
  if (threadIdx.x == 0) {
    mbarrier_init(&bar, 1);
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    mbarrier_expect(&bar, bytes);
    load(rank, base, &map, c, shared_address(&bar));
  }
  mbarrier_wait(&bar, 0);
  for (int k = threadIdx.x; k < bytes; k += blockDim.x) out[k] = shared[base - shared_address(shared) + k];
}

// The box's elements = in[0 .. bytes), as they lie in shared memory. operation 0: stored; else reduced.
extern "C" __global__ void store_box(const __grid_constant__ CUtensorMap map, int rank, Coordinates c, int bytes,
                                     int skew, const uint8_t* in, int operation) {
  extern __shared__ uint8_t shared[];
  const uint32_t from = ((shared_address(shared) + 1023) & ~1023u) + skew;
  for (int k = threadIdx.x; k < bytes; k += blockDim.x) shared[from - shared_address(shared) + k] = in[k];
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  __syncthreads();
  if (threadIdx.x == 0) {
    const CUtensorMap* p = &map;
    switch (operation) {
      case 0: {
        const CUtensorMap* map = p;
        STORES("cp.async.bulk.tensor", ".tile");
        break;
      }
#define REDUCE(NUMBER, NAME)                                 \
  case NUMBER: {                                             \
    const CUtensorMap* map = p;                              \
    STORES("cp.reduce.async.bulk.tensor", "." NAME ".tile"); \
    break;                                                   \
  }
        REDUCE(1, "add")
        REDUCE(2, "min")
        REDUCE(3, "max")
        REDUCE(4, "inc")
        REDUCE(5, "dec")
        REDUCE(6, "and")
        REDUCE(7, "or")
        REDUCE(8, "xor")
    }
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
    asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
  }
}

// Each block of a cluster loads a slice of rows and sends it to all of them.
extern "C" __global__ void multicast_box(const __grid_constant__ CUtensorMap map, int rows, int row_bytes,
                                         uint8_t* out) {
  extern __shared__ __align__(128) uint8_t shared[];
  __shared__ alignas(8) uint64_t bar;
  uint32_t rank, blocks;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(blocks));
  const int slice = rows * row_bytes;
  if (threadIdx.x == 0) {
    mbarrier_init(&bar, 1);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    mbarrier_expect(&bar, slice * blocks);
  }
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
  if (threadIdx.x == 0) {
    const uint16_t all = (1u << blocks) - 1;
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, "
        "{%3, %4}], "
        "[%2], %5;" ::"r"(shared_address(shared) + rank * slice),
        "l"(&map), "r"(shared_address(&bar)), "r"(0), "r"(rank * rows), "h"(all)
        : "memory");
  }
  mbarrier_wait(&bar, 0);
  for (int k = threadIdx.x; k < slice * blocks; k += blockDim.x) out[blockIdx.x * slice * blocks + k] = shared[k];
  asm volatile("barrier.cluster.arrive.aligned;" ::: "memory");
  asm volatile("barrier.cluster.wait.aligned;" ::: "memory");
}

struct alignas(128) MapCopy {
  uint8_t bytes[128];
};

// A map made from another in shared memory, published in global memory, and used: a box of `columns` × `rows` of an
// array of floats at `array`, `pitch` bytes from row to row. broken: 1 leaves out the acquiring fence.
extern "C" __global__ void remade_map(const __grid_constant__ CUtensorMap map, MapCopy* place, float* array,
                                      int columns, int rows, uint64_t pitch, float* out, int broken) {
  __shared__ alignas(128) uint8_t copy[128];
  __shared__ alignas(128) float box[16 * 16];
  __shared__ alignas(8) uint64_t bar;
  const uint32_t to = shared_address(copy), mbar = shared_address(&bar);
  if (threadIdx.x < 32)
    reinterpret_cast<uint32_t*>(copy)[threadIdx.x] = reinterpret_cast<const uint32_t*>(&map)[threadIdx.x];
  __syncwarp();
  if (threadIdx.x == 0) {
    asm volatile("tensormap.replace.tile.global_address.shared::cta.b1024.b64 [%0], %1;" ::"r"(to), "l"(array)
                 : "memory");
    asm volatile("tensormap.replace.tile.rank.shared::cta.b1024.b32 [%0], %1;" ::"r"(to), "r"(1) : "memory");
    asm volatile("tensormap.replace.tile.box_dim.shared::cta.b1024.b32 [%0], 0, %1;" ::"r"(to), "r"(columns)
                 : "memory");
    asm volatile("tensormap.replace.tile.box_dim.shared::cta.b1024.b32 [%0], 1, %1;" ::"r"(to), "r"(rows) : "memory");
    asm volatile("tensormap.replace.tile.global_dim.shared::cta.b1024.b32 [%0], 0, %1;" ::"r"(to), "r"(columns)
                 : "memory");
    asm volatile("tensormap.replace.tile.global_dim.shared::cta.b1024.b32 [%0], 1, %1;" ::"r"(to), "r"(rows)
                 : "memory");
    asm volatile("tensormap.replace.tile.global_stride.shared::cta.b1024.b64 [%0], 0, %1;" ::"r"(to), "l"(pitch)
                 : "memory");
    asm volatile("tensormap.replace.tile.element_stride.shared::cta.b1024.b32 [%0], 0, %1;" ::"r"(to), "r"(1)
                 : "memory");
    asm volatile("tensormap.replace.tile.element_stride.shared::cta.b1024.b32 [%0], 1, %1;" ::"r"(to), "r"(1)
                 : "memory");
    asm volatile("tensormap.replace.tile.elemtype.shared::cta.b1024.b32 [%0], 7;" ::"r"(to) : "memory");
    asm volatile("tensormap.replace.tile.interleave_layout.shared::cta.b1024.b32 [%0], 0;" ::"r"(to) : "memory");
    asm volatile("tensormap.replace.tile.swizzle_mode.shared::cta.b1024.b32 [%0], 0;" ::"r"(to) : "memory");
    asm volatile("tensormap.replace.tile.fill_mode.shared::cta.b1024.b32 [%0], 0;" ::"r"(to) : "memory");
    mbarrier_init(&bar, 1);
  }
  __syncwarp();
  if (threadIdx.x < 32) {
    asm volatile(
        "tensormap.cp_fenceproxy.global.shared::cta.tensormap::generic.release.gpu.sync.aligned [%0], [%1], 128;" ::"l"(
            place),
        "r"(to)
        : "memory");
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    if (broken != 1) asm volatile("fence.proxy.tensormap::generic.acquire.gpu [%0], 128;" ::"l"(place) : "memory");
    mbarrier_expect(&bar, columns * rows * 4);
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %3}], [%2];" ::"r"(
            shared_address(box)),
        "l"(place), "r"(mbar), "r"(0)
        : "memory");
  }
  mbarrier_wait(&bar, 0);
  for (int k = threadIdx.x; k < columns * rows; k += blockDim.x) out[k] = box[k];
}

// tensormap.replace on a map in global memory.
extern "C" __global__ void moved_map(CUtensorMap* map, float* array, float* out) {
  __shared__ alignas(128) float box[32];
  __shared__ alignas(8) uint64_t bar;
  const uint32_t mbar = shared_address(&bar);
  if (threadIdx.x == 0) {
    asm volatile("tensormap.replace.tile.global_address.global.b1024.b64 [%0], %1;" ::"l"(map), "l"(array) : "memory");
    asm volatile("fence.proxy.tensormap::generic.release.gpu;" ::: "memory");
    asm volatile("fence.proxy.tensormap::generic.acquire.gpu [%0], 128;" ::"l"(map) : "memory");
    mbarrier_init(&bar, 1);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    mbarrier_expect(&bar, 128);
    asm volatile("cp.async.bulk.prefetch.tensor.1d.L2.global.tile [%0, {%1}];" ::"l"(map), "r"(0) : "memory");
    asm volatile(
        "cp.async.bulk.tensor.1d.shared::cta.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3}], [%2];" ::"r"(
            shared_address(box)),
        "l"(map), "r"(mbar), "r"(0)
        : "memory");
    mbarrier_wait(&bar, 0);
  }
  __syncthreads();
  out[threadIdx.x] = box[threadIdx.x];
}
