// A ring of stages in shared memory between a producer warpgroup, which fills them with cp.async and TMA, and consumer
// warpgroups, which multiply from them with wgmma.
//
// A stage is full when each thread of the producer has arrived, its copies have come, and so have the bytes that the
// first thread announced. It is empty again when each warp of the consumers has arrived.
//
// Blocks have three warpgroups and a multiprocessor to themselves: the producer gives registers to the consumers.
#pragma once

#include "cuda/ptx/mbarrier.cuh"
#include "cuda/ptx/registers.cuh"
#include "cuda/ptx/tensor_copy.cuh"

namespace moe::cuda::wgmma {

constexpr int kWarpgroup = 128;
constexpr int kConsumers = 2;  // warpgroups 1 and 2; 0 is the producer
constexpr int kThreads = kWarpgroup * (1 + kConsumers);
constexpr int kProducerRegisters = 56, kConsumerRegisters = 224;
static_assert(kWarpgroup * (kProducerRegisters + kConsumers * kConsumerRegisters) <= 65536);

template <int kStages>
struct RingBarriers {
  uint64_t full[kStages], empty[kStages];

  // By one thread; the block synchronises after it.
  __device__ void init() {
    for (int stage = 0; stage < kStages; ++stage) {
      ptx::init_barrier(full[stage], kWarpgroup + 1);
      ptx::init_barrier(empty[stage], kConsumers * kWarpgroup / 32);
    }
    ptx::fence_barrier_init();
    ptx::fence_async_proxy();
  }
};

// Where one thread is on its way around the ring.
template <int kStages>
class RingPlace {
 public:
  __device__ explicit RingPlace(RingBarriers<kStages>& barriers) : barriers_(barriers) {}

  __device__ int stage() const { return stage_; }
  __device__ uint64_t& full() const { return barriers_.full[stage_]; }

  __device__ void next() {
    if (++stage_ < kStages) return;
    stage_ = 0;
    parity_ ^= 1;
  }

  // Producer.
  __device__ void wait_until_empty() const { ptx::wait(barriers_.empty[stage_], parity_ ^ 1); }

  // Consumer: full, and wgmma sees what cp.async wrote.
  __device__ void wait_until_full() const {
    ptx::wait(barriers_.full[stage_], parity_);
    ptx::fence_async_proxy();
  }
  __device__ void release(int stage) const {
    if (threadIdx.x % 32 == 0) ptx::arrive(barriers_.empty[stage]);
  }

 private:
  RingBarriers<kStages>& barriers_;
  int stage_ = 0;
  uint32_t parity_ = 0;
};

// The block's warpgroups part here. consume(group): 0 or 1.
template <int kStages, class Produce, class Consume>
__device__ void specialise(RingBarriers<kStages>& barriers, const Produce& produce, const Consume& consume) {
  if (threadIdx.x == 0) barriers.init();
  __syncthreads();
  // The same for all lanes of a warp, and the compiler is to know it.
  const int warpgroup = __shfl_sync(0xffffffff, static_cast<int>(threadIdx.x) / kWarpgroup, 0);
  if (warpgroup == 0) {
    ptx::give_up_registers<kProducerRegisters>();
    produce();
    ptx::wait_for_copies<0>();
  } else {
    ptx::take_registers<kConsumerRegisters>();
    consume(warpgroup - 1);
  }
}

}  // namespace moe::cuda::wgmma
