// Fetching what will be packed next in the shadow of the products of now, some lines at a time.
#pragma once

#include <stdint.h>

#ifndef MOE_ISA
#error "define MOE_ISA before this header"
#endif

namespace moe::cpu::MOE_ISA {

// A block of a matrix, line by line along its rows. Addresses need not be valid.
class Ahead {
 public:
  Ahead() = default;
  Ahead(const void* data, int64_t row_stride_bytes, int64_t rows, int64_t row_bytes)
      : row_(static_cast<const char*>(data)), row_stride_(row_stride_bytes), rows_(rows), row_bytes_(row_bytes) {}

  // A few lines more, before the products of the steps from k0 on. Returns up to where it is time for the next.
  int64_t fetch(int64_t k0, int64_t k) {
    constexpr int64_t kSteps = 16;
    fetch_some();
    return k - k0 < kSteps ? k : k0 + kSteps;
  }

 private:
  void fetch_some() {
    constexpr int64_t kLine = 64, kBytesAtOnce = 16 * kLine;
    if (rows_ == 0) return;
    const int64_t end = row_bytes_ - done_ < kBytesAtOnce ? row_bytes_ : done_ + kBytesAtOnce;
    for (int64_t byte = done_; byte < end; byte += kLine) __builtin_prefetch(row_ + byte, 0, 2);
    done_ = end;
    if (done_ < row_bytes_) return;
    done_ = 0;
    row_ += row_stride_;
    --rows_;
  }

  const char* row_ = nullptr;
  int64_t row_stride_ = 0, rows_ = 0, row_bytes_ = 0, done_ = 0;
};

// For engines that fetch nothing.
struct NothingAhead {
  static int64_t fetch(int64_t, int64_t k) { return k; }
};

template <class Engine>
struct AheadOf {
  static constexpr bool kFetches = false;
  using type = NothingAhead;
};
template <class Engine>
  requires Engine::kFetchesAhead
struct AheadOf<Engine> {
  static constexpr bool kFetches = true;
  using type = Ahead;
};

}  // namespace moe::cpu::MOE_ISA
