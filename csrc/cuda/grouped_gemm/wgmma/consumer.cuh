// What a consumer warpgroup does: multiplies 64 rows or columns of one operand by all of the other, stage by stage, and
// puts the sums into shared memory.
#pragma once

#include "cuda/grouped_gemm/wgmma/shape.cuh"
#include "cuda/ptx/store_shared.cuh"
#include "cuda/ptx/wgmma.cuh"

namespace moe::cuda::wgmma {

// An operand in every stage of the ring.
struct StagedOperand {
  uint32_t address;  // of the first stage, in shared memory
  uint32_t stage_bytes;

  template <bool kTransposed>
  __device__ uint64_t describe_stage(int stage) const {
    return describe<kTransposed>(address + stage * stage_bytes);
  }
};

// sums += a * b over `steps` stages. Each sum is one chain, 16 elements of the reduction to a link.
template <class T, bool kTransposedA, bool kTransposedB, int kStages, int kSums>
__device__ void multiply_stages(const StagedOperand& a, const StagedOperand& b, int32_t steps,
                                RingPlace<kStages>& place, float (&sums)[kSums]) {
  int previous = -1;
  ptx::pin(sums);
  for (int32_t i = 0; i < steps; ++i, place.next()) {
    const uint64_t a_bits = a.template describe_stage<kTransposedA>(place.stage());
    const uint64_t b_bits = b.template describe_stage<kTransposedB>(place.stage());
    place.wait_until_full();
    ptx::fence_products();
#pragma unroll
    for (int j = 0; j < kProducts; ++j) {
      ptx::multiply<T, kTransposedA, kTransposedB>(sums, a_bits + j * kNextProduct<kTransposedA>,
                                                   b_bits + j * kNextProduct<kTransposedB>);
    }
    ptx::commit_products();
    // While these products are under way, those before them are done with their stage.
    ptx::wait_for_products<1>();
    if (previous >= 0) place.release(previous);
    previous = place.stage();
  }
  ptx::wait_for_products<0>();
  ptx::pin(sums);
  if (previous >= 0) place.release(previous);
}

// For a warpgroup that has nothing to multiply.
template <int kStages>
__device__ void pass_stages(int32_t steps, RingPlace<kStages>& place) {
  for (int32_t i = 0; i < steps; ++i, place.next()) {
    place.wait_until_full();
    __syncwarp();  // or a lane that is late could find the barrier two phases on
    place.release(place.stage());
  }
}

// A slice of two times 32 tile columns, from kFirst and kSecond on.
template <int kFirst, int kSecond, int kSums>
__device__ void write_columns(const float (&sums)[kSums], float* slice, int thread) {
  const int warp = thread / 32, lane = thread % 32;
  const uint32_t to = ptx::shared_address(slice + (warp * 16 + lane / 4) * kSliceStride + lane % 4 * 2);
#pragma unroll
  for (int i = 0; i < kSliceColumns / 8; ++i) {
    const int from = 4 * (i < 4 ? kFirst / 8 + i : kSecond / 8 + i - 4);
    const uint32_t upper = to + i * 8 * sizeof(float), lower = upper + 8 * kSliceStride * sizeof(float);
    ptx::store_shared(upper, sums[from], sums[from + 1]);
    ptx::store_shared(lower, sums[from + 2], sums[from + 3]);
  }
}

// Slice `index` of a tile; `split`: half of it from each half of the tile. The compiler has to know which registers a
// slice consists of, so that there is a copy of the code for each.
template <int kIndex = 0, int kSums>
__device__ void write_slice(const float (&sums)[kSums], bool split, int index, float* slice, int thread) {
  constexpr int kColumns = 2 * kSums, kHalf = kSliceColumns / 2;
  if constexpr (kIndex < kColumns / kSliceColumns) {
    if (index != kIndex) {
      write_slice<kIndex + 1>(sums, split, index, slice, thread);
    } else if (split) {
      write_columns<kIndex * kHalf, kColumns / 2 + kIndex * kHalf>(sums, slice, thread);
    } else {
      write_columns<kIndex * kSliceColumns, kIndex * kSliceColumns + kHalf>(sums, slice, thread);
    }
  }
}

}  // namespace moe::cuda::wgmma
