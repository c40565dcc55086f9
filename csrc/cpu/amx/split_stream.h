// A product of few rows by weights that are contiguous along k, where all that counts is to read the weights as fast as
// memory delivers: they are split step by step into a ring that stays in the L1 cache, two steps ahead of the tiles.
#pragma once

#include "cpu/amx/split_engine.h"

namespace moe::cpu::MOE_ISA {

// Splits steps of B, 32 rows each, in the order in which they are multiplied: step after step of a panel, panel after
// panel, those of gate and up in turn.
template <class T, int kParts>
class StepsAhead {
 public:
  static constexpr int64_t kRows = 32;
  static constexpr int64_t kSlots = 4;
  static constexpr int64_t kDistance = 2;
  static constexpr int64_t kRowBytes = kParts * 64;
  static constexpr int64_t kSlotBytes = kRows * kRowBytes;

  StepsAhead(const Source<T>& b, const GemmJob& job, char* ring)
      : b_(b), job_(job), halves_(job.pair_offset ? 2 : 1), steps_((job.k + kSplitStep - 1) / kSplitStep), ring_(ring) {
    begin_step();
    for (int64_t i = 0; i < kDistance; ++i) finish_step();
  }

  // Called after each product of tiles.
  __attribute__((always_inline)) void step() {
    constexpr int64_t kProducts = kParts == 3 ? 6 : 4;
    run(kRows / kProducts + 1);
  }
  // What is left of one step.
  void finish_step() {
    run(kRows);
    slot_ = (slot_ + 1) % kSlots;
    if (++step_ == steps_) {
      step_ = 0;
      ++panel_;
    }
    begin_step();
  }
  char* slot(int64_t step) const { return ring_ + step % kSlots * kSlotBytes; }

 private:
  // The step in memory from which rows are `ahead` further on, or null.
  const T* address(int64_t panel, int64_t step) const {
    const int64_t column = panel / halves_ * kRows;
    if (column >= job_.n) return nullptr;
    return b_.at(column, step * kSplitStep) + panel % halves_ * job_.pair_offset;
  }

  void begin_step() {
    constexpr int64_t kFetch = sizeof(T) == 4 ? 4 : 8;
    row_ = 0;
    from_ = address(panel_, step_);
    to_ = ring_ + slot_ * kSlotBytes;
    const int64_t later = step_ + kFetch;
    fetch_ = later < steps_ ? address(panel_, later) : address(panel_ + 1, (later - steps_) % steps_);
    if (!fetch_) fetch_ = from_;
    const int64_t column = panel_ / halves_ * kRows, k = job_.k - step_ * kSplitStep;
    rows_ = job_.n - column < kRows ? job_.n - column : kRows;
    whole_ = from_ && rows_ == kRows && k >= kSplitStep;
    count_ = k;
  }

  __attribute__((always_inline)) void run(int64_t count) {
    if (count > kRows - row_) count = kRows - row_;
    if (!whole_) {
      run_ragged(count);
      return;
    }
    for (; count > 0; --count) {
      __builtin_prefetch(fetch_);
      if constexpr (sizeof(T) == 4) __builtin_prefetch(fetch_ + 16);
      split_row<T, kParts>(from_, kSplitStep, reinterpret_cast<SplitNumber<kParts>*>(to_));
      advance();
    }
  }
  void run_ragged(int64_t count) {
    for (; count > 0 && from_; --count) {
      if (row_ < rows_) {
        split_row<T, kParts>(from_, count_, reinterpret_cast<SplitNumber<kParts>*>(to_));
      } else {
        memset(to_, 0, kRowBytes);
      }
      advance();
    }
  }
  __attribute__((always_inline)) void advance() {
    from_ += b_.outer_stride;
    fetch_ += b_.outer_stride;
    to_ += kRowBytes;
    ++row_;
  }

  const Source<T>& b_;
  const GemmJob& job_;
  const int64_t halves_, steps_;
  char* const ring_;
  int64_t panel_ = 0, step_ = 0, slot_ = 0, row_ = 0, rows_ = 0, count_ = 0;
  bool whole_ = false;
  const T* from_ = nullptr;
  const T* fetch_ = nullptr;
  char* to_ = nullptr;
};

}  // namespace moe::cpu::MOE_ISA
