// setmaxnreg: warpgroups of a block hand registers to each other (sm_90a). All warps of a warpgroup execute it.
#pragma once

namespace moe::cuda::ptx {

template <int kRegisters>
__device__ __forceinline__ void give_up_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// Waits until other warps have given up enough.
template <int kRegisters>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

}  // namespace moe::cuda::ptx
