// Division by a number that the host knows and the kernel does not: a multiplication and a shift.
#pragma once

#include <cstdint>

namespace moe::cuda {

// For dividends below 2^31 and divisors 1 .. 2^31 - 1.
class FastDivide {
 public:
  FastDivide() = default;
  explicit FastDivide(uint32_t divisor) : divisor_(divisor) {
    while ((uint64_t{1} << shift_) < divisor) ++shift_;
    multiplier_ = static_cast<uint32_t>(((uint64_t{1} << 32) * ((uint64_t{1} << shift_) - divisor)) / divisor + 1);
  }

#ifdef __CUDACC__
  __device__ uint32_t operator()(uint32_t dividend) const {
    return (__umulhi(dividend, multiplier_) + dividend) >> shift_;
  }
  __host__ __device__ uint32_t divisor() const { return divisor_; }
#else
  uint32_t divisor() const { return divisor_; }
#endif

 private:
  uint32_t divisor_ = 1, multiplier_ = 1, shift_ = 0;
};

}  // namespace moe::cuda
