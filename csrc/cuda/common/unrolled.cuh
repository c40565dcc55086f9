// Loops whose index is a constant in each round: what is added to an address can then stand in the instruction itself.
#pragma once

#include <utility>

namespace moe::cuda {

template <int kValue>
struct Constant {
  __host__ __device__ constexpr operator int() const { return kValue; }
};

// body(Constant<i>()) for i = 0 .. kCount - 1.
template <int kCount, class Body>
__device__ __forceinline__ void unrolled(const Body& body) {
  [&]<int... kIndex>(std::integer_sequence<int, kIndex...>) {
    (body(Constant<kIndex>()), ...);
  }(std::make_integer_sequence<int, kCount>());
}

}  // namespace moe::cuda
