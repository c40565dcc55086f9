// Cuts one allocation into buffers. The same code that lays them out measures how much they need: with a null base.
#pragma once

#include <cstdint>

namespace moe::cuda {

class Workspace {
 public:
  explicit Workspace(void* base) : base_(static_cast<char*>(base)) {}

  // `count` values, aligned for any access; null while measuring, or for none.
  template <class T>
  T* take(int64_t count) {
    return static_cast<T*>(take_bytes(count * static_cast<int64_t>(sizeof(T))));
  }
  void* take_bytes(int64_t bytes) {
    constexpr int64_t kAlignment = 256;
    const int64_t at = used_;
    used_ += (bytes + kAlignment - 1) / kAlignment * kAlignment;
    return base_ != nullptr && bytes > 0 ? base_ + at : nullptr;
  }
  int64_t used() const { return used_; }

 private:
  char* base_;
  int64_t used_ = 0;
};

}  // namespace moe::cuda
