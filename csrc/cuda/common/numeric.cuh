// Number formats, their accumulators, and short vectors of them that move as one access.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "moe/types.h"

namespace moe::cuda {

// What sums of T are kept in.
template <class T>
using acc_t = std::conditional_t<std::is_same_v<T, double>, double, float>;

template <class T>
constexpr bool kIsHalf = sizeof(T) == 2;

__device__ inline float to_acc(float x) { return x; }
__device__ inline double to_acc(double x) { return x; }
__device__ inline float to_acc(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline float to_acc(__half x) { return __half2float(x); }

// Rounds to nearest even.
template <class T>
__device__ T from_acc(acc_t<T> x) {
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    return __float2bfloat16_rn(x);
  } else if constexpr (std::is_same_v<T, __half>) {
    return __float2half_rn(x);
  } else {
    return x;
  }
}

// N values that move as one access where N * sizeof(T) is 4, 8 or 16 and the address a multiple of it; as two halves
// where it is 32.
template <class T, int N>
struct alignas(N * sizeof(T) <= 16 ? N * sizeof(T) : 16) Vector {
  T values[N];
};

template <int N, class T>
__device__ Vector<T, N> load(const T* source) {
  return *reinterpret_cast<const Vector<T, N>*>(source);
}

template <int N, class T>
__device__ void store(T* target, const Vector<T, N>& vector) {
  *reinterpret_cast<Vector<T, N>*>(target) = vector;
}

template <class T, int N>
__device__ void to_acc(const Vector<T, N>& vector, acc_t<T> (&values)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) values[i] = to_acc(vector.values[i]);
}

// Pairs, since one instruction rounds two values to 16 bits.
template <class T, int N>
__device__ Vector<T, N> from_acc(const acc_t<T> (&values)[N]) {
  Vector<T, N> vector;
#pragma unroll
  for (int i = 0; i < N; ++i) {
    if constexpr (kIsHalf<T> && N % 2 == 0) {
      if (i % 2 != 0) continue;
      if constexpr (std::is_same_v<T, __nv_bfloat16>) {
        const __nv_bfloat162 pair = __floats2bfloat162_rn(values[i], values[i + 1]);
        vector.values[i] = pair.x, vector.values[i + 1] = pair.y;
      } else {
        const __half2 pair = __floats2half2_rn(values[i], values[i + 1]);
        vector.values[i] = pair.x, vector.values[i + 1] = pair.y;
      }
    } else {
      vector.values[i] = from_acc<T>(values[i]);
    }
  }
  return vector;
}

// Two values of 16 bits in one register, the first one below.
template <class T>
__device__ uint32_t pack(float first, float second) {
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(first, second);
    return *reinterpret_cast<const uint32_t*>(&pair);
  } else {
    const __half2 pair = __floats2half2_rn(first, second);
    return *reinterpret_cast<const uint32_t*>(&pair);
  }
}

template <class T>
__device__ void unpack(uint32_t pair, float& first, float& second) {
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    first = __uint_as_float(pair << 16), second = __uint_as_float(pair & 0xffff0000);
  } else {
    const float2 both = __half22float2(*reinterpret_cast<const __half2*>(&pair));
    first = both.x, second = both.y;
  }
}

// Calls body(static_cast<T*>(nullptr)) for the type behind dtype.
template <class Body>
auto with_type(DType dtype, const Body& body) {
  switch (dtype) {
    case DType::kBFloat16:
      return body(static_cast<__nv_bfloat16*>(nullptr));
    case DType::kFloat16:
      return body(static_cast<__half*>(nullptr));
    case DType::kFloat64:
      return body(static_cast<double*>(nullptr));
    case DType::kFloat32:
      break;
  }
  return body(static_cast<float*>(nullptr));
}

}  // namespace moe::cuda
