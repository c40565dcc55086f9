// Sums of parts that are not finite.
//
// A number that is infinite, NaN or so large that it rounds to an infinite bfloat16 has a part that is NaN, so whatever
// it belongs to comes out as NaN, which the true sum need not be. Such a sum is formed again from the numbers
// themselves by fused multiply-adds. Nothing but its own row and column decides whether it is, so that a token's result
// does not depend on what other tokens hold.
#pragma once

#include "cpu/amx/split.h"

namespace moe::cpu::MOE_ISA {

// A block of sums: row i, column j stands at sums[i * row_stride + j * column_stride], and one stride is 1.
struct SumsOfParts {
  float* sums;
  int64_t row_stride, column_stride, rows, columns, k;

  bool are_finite() const {
    const bool by_rows = column_stride == 1;
    const int64_t lines = by_rows ? rows : columns, length = by_rows ? columns : rows;
    const int64_t stride = by_rows ? row_stride : column_stride;
    constexpr int kNanOrInfinite = 0x99;
    __mmask16 found = 0;
    for (int64_t line = 0; line < lines; ++line) {
      for (int64_t at = 0; at < length; at += 16) {
        found |= _mm512_fpclass_ps_mask(load_neighbours(sums + line * stride + at, length - at), kNanOrInfinite);
      }
    }
    return found == 0;
  }

  // b_offset: elements from the B of the source to this one.
  template <class T>
  __attribute__((noinline)) void sum_again(const Source<T>& a, Source<T> b, int64_t column0, int64_t b_offset) const {
    b.data += b_offset;
    for (int64_t j = 0; j < columns; ++j) {
      const bool column_has_nan = has_nan(b, column0 + j);
      for (int64_t i = 0; i < rows; ++i) {
        float& sum = sums[i * row_stride + j * column_stride];
        if (__builtin_isfinite(sum)) continue;
        // Most often it is NaN because a number is, for whole rows: nothing to be found out by adding.
        sum = column_has_nan || has_nan(a, i) ? __builtin_nanf("") : dot(a, i, b, column0 + j);
      }
    }
  }

 private:
  template <class T>
  bool has_nan(const Source<T>& source, int64_t outer) const {
    for (int64_t kk = 0; kk < k; kk += 16) {
      const __m512 x = load_along_k(source, outer, kk, k - kk);
      if (_mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q)) return true;
    }
    return false;
  }

  template <class T>
  float dot(const Source<T>& a, int64_t row, const Source<T>& b, int64_t column) const {
    __m512 sum = _mm512_setzero_ps();
    for (int64_t kk = 0; kk < k; kk += 16) {
      sum = _mm512_fmadd_ps(load_along_k(a, row, kk, k - kk), load_along_k(b, column, kk, k - kk), sum);
    }
    return _mm512_reduce_add_ps(sum);
  }
};

}  // namespace moe::cpu::MOE_ISA
