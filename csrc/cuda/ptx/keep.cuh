// A value that the compiler must have in registers from here on, whatever it was computed from.
#pragma once

namespace moe::cuda::ptx {

// A pointer as one sum. Otherwise what lies in constant memory is added again at each use.
template <class T>
__device__ __forceinline__ T* keep(T* pointer) {
  asm("" : "+l"(pointer));
  return pointer;
}

}  // namespace moe::cuda::ptx
