// combine, its gradient, and the sum of each expert's rows. Contract: moe/combine.h.
//
// A row is worked on in tiles that stay in the first-level cache. Every element is summed in the order of k (or of
// rows), dot products over a fixed number of lanes: results depend neither on the instruction set nor on the cut.
#pragma once

#include <stdint.h>
#include <string.h>

#include "cpu/vectorized/numeric.h"
#include "moe/combine.h"

namespace moe::cpu::MOE_ISA {

namespace combining {

inline constexpr int64_t kTile = 1024;
// Rows that one pass over a tile adds: their sum stays in registers, and as many streams are read at once.
inline constexpr int kRowsAtOnce = 8;

// sums (+)= weights[0] * rows[0] + weights[1] * rows[1] + ..., one product after the other.
template <int kCount, bool kFirst, class T>
static inline void add_rows(const T* const* rows, const acc_t<T>* weights, int64_t offset, int64_t count,
                            acc_t<T>* __restrict sums) {
  using A = acc_t<T>;
  const auto row = [&](int j) { return rows[j < kCount ? j : 0] + offset; };
  const auto weight = [&](int j) { return j < kCount ? weights[j] : A(0); };
  const T* __restrict r0 = row(0);
  const T* __restrict r1 = row(1);
  const T* __restrict r2 = row(2);
  const T* __restrict r3 = row(3);
  const T* __restrict r4 = row(4);
  const T* __restrict r5 = row(5);
  const T* __restrict r6 = row(6);
  const T* __restrict r7 = row(7);
  const A w0 = weight(0), w1 = weight(1), w2 = weight(2), w3 = weight(3);
  const A w4 = weight(4), w5 = weight(5), w6 = weight(6), w7 = weight(7);
  for (int64_t i = 0; i < count; ++i) {
    A sum = (kFirst ? A(0) : sums[i]) + w0 * to_acc(r0[i]);
    if constexpr (kCount > 1) sum += w1 * to_acc(r1[i]);
    if constexpr (kCount > 2) sum += w2 * to_acc(r2[i]);
    if constexpr (kCount > 3) sum += w3 * to_acc(r3[i]);
    if constexpr (kCount > 4) sum += w4 * to_acc(r4[i]);
    if constexpr (kCount > 5) sum += w5 * to_acc(r5[i]);
    if constexpr (kCount > 6) sum += w6 * to_acc(r6[i]);
    if constexpr (kCount > 7) sum += w7 * to_acc(r7[i]);
    sums[i] = sum;
  }
}

template <bool kFirst, int kCount = kRowsAtOnce, class T>
static inline void add_some_rows(int rows_now, const T* const* rows, const acc_t<T>* weights, int64_t offset,
                                 int64_t count, acc_t<T>* __restrict sums) {
  if (rows_now == kCount) {
    add_rows<kCount, kFirst>(rows, weights, offset, count, sums);
  } else if constexpr (kCount > 1) {
    add_some_rows<kFirst, kCount - 1>(rows_now, rows, weights, offset, count, sums);
  }
}

// Columns [begin, end) of the weighted sum of rows that next(&row, &weight) hands out one by one until it returns
// false.
template <class T, class Rewind, class Next>
static inline void sum_rows(int64_t begin, int64_t end, const Rewind& rewind, const Next& next, T* __restrict out) {
  using A = acc_t<T>;
  alignas(64) A sums[kTile];
  for (int64_t offset = begin; offset < end; offset += kTile) {
    const int64_t count = end - offset < kTile ? end - offset : kTile;
    const T* rows[kRowsAtOnce];
    A weights[kRowsAtOnce];
    int pending = 0;
    bool first = true;
    rewind();
    for (bool more = true; more;) {
      more = next(&rows[pending], &weights[pending]);
      pending += more ? 1 : 0;
      if (pending == 0 || (more && pending < kRowsAtOnce)) continue;
      if (first) {
        add_some_rows<true>(pending, rows, weights, offset, count, sums);
      } else {
        add_some_rows<false>(pending, rows, weights, offset, count, sums);
      }
      first = false;
      pending = 0;
    }
    if (first) memset(sums, 0, sizeof(A) * static_cast<size_t>(count));
    for (int64_t i = 0; i < count; ++i) out[offset + i] = from_acc<T>(sums[i]);
  }
}

template <class T>
static void forward(const CombineParams& p, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  const T* rows = static_cast<const T*>(p.rows);
  for (int64_t t = begin; t < end; ++t) {
    const int32_t* row_of = p.slot_to_row + t * p.top_k;
    const A* weights = p.topk_weights == nullptr ? nullptr : static_cast<const A*>(p.topk_weights) + t * p.top_k;
    int64_t k = 0;
    const auto next = [&](const T** row, A* weight) {
      while (k < p.top_k && row_of[k] < 0) ++k;
      if (k == p.top_k) return false;
      *row = rows + row_of[k] * p.rows_stride;
      *weight = weights == nullptr ? A(1) : weights[k];
      ++k;
      return true;
    };
    sum_rows<T>(0, p.hidden_size, [&] { k = 0; }, next, static_cast<T*>(p.out) + t * p.out_stride);
  }
}

// Dot product over kLanes lanes that are added pairwise in the end.
template <class A>
struct Dot {
  static constexpr int64_t kWidth = 64 / sizeof(A);
  static constexpr int64_t kVectors = 2;
  static constexpr int64_t kLanes = kWidth * kVectors;
  typedef A Vector __attribute__((vector_size(64)));
  Vector sums[kVectors] = {};

  // products holds whole blocks of kLanes.
  void add(const A* __restrict products, int64_t padded) {
    for (int64_t i = 0; i < padded; i += kLanes) {
#pragma GCC unroll 2
      for (int64_t j = 0; j < kVectors; ++j) {
        Vector x;
        memcpy(&x, products + i + j * kWidth, sizeof(x));
        sums[j] += x;
      }
    }
  }

  A total() const {
    A lanes[kLanes];
    memcpy(lanes, sums, sizeof(lanes));
    for (int64_t width = kLanes / 2; width > 0; width /= 2) {
      for (int64_t l = 0; l < width; ++l) lanes[l] += lanes[l + width];
    }
    return lanes[0];
  }
};

template <class T>
static inline void scale_row(const T* __restrict grad, acc_t<T> weight, int64_t count, T* __restrict out) {
  for (int64_t i = 0; i < count; ++i) out[i] = from_acc<T>(weight * to_acc(grad[i]));
}

template <class T>
static inline void multiply_rows(const T* __restrict grad, const T* __restrict row, int64_t count,
                                 acc_t<T>* __restrict products) {
  for (int64_t i = 0; i < count; ++i) products[i] = to_acc(grad[i]) * to_acc(row[i]);
}

template <class T>
static void backward(const CombineBackwardParams& p, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  alignas(64) A products[kTile];
  for (int64_t t = begin; t < end; ++t) {
    const T* grad = static_cast<const T*>(p.grad_y) + t * p.grad_y_stride;
    for (int64_t slot = t * p.top_k; slot < (t + 1) * p.top_k; ++slot) {
      const int64_t r = p.slot_to_row[slot];
      const A weight = p.topk_weights == nullptr ? A(1) : static_cast<const A*>(p.topk_weights)[slot];
      Dot<A> dot;
      for (int64_t offset = 0; r >= 0 && offset < p.hidden_size; offset += kTile) {
        const int64_t count = p.hidden_size - offset < kTile ? p.hidden_size - offset : kTile;
        if (p.grad_rows != nullptr) {
          scale_row(grad + offset, weight, count, static_cast<T*>(p.grad_rows) + r * p.hidden_size + offset);
        }
        if (p.grad_topk_weights != nullptr) {
          multiply_rows(grad + offset, static_cast<const T*>(p.rows) + r * p.rows_stride + offset, count, products);
          const int64_t padded = (count + Dot<A>::kLanes - 1) / Dot<A>::kLanes * Dot<A>::kLanes;
          for (int64_t i = count; i < padded; ++i) products[i] = 0;
          dot.add(products, padded);
        }
      }
      if (p.grad_topk_weights != nullptr) static_cast<A*>(p.grad_topk_weights)[slot] = dot.total();
    }
  }
}

template <class T>
static void segment_sum(const SegmentSumParams& p, int64_t expert, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  const T* rows = static_cast<const T*>(p.rows);
  int64_t r = 0;
  const auto next = [&](const T** row, A* weight) {
    if (r >= p.expert_offsets[expert + 1]) return false;
    const int64_t slot = p.row_to_slot == nullptr ? 0 : p.row_to_slot[r];
    *row = rows + (p.row_to_slot == nullptr ? r : slot / p.top_k) * p.rows_stride;
    *weight = p.topk_weights == nullptr ? A(1) : static_cast<const A*>(p.topk_weights)[slot];
    ++r;
    return true;
  };
  sum_rows<T>(begin, end, [&] { r = p.expert_offsets[expert]; }, next, static_cast<T*>(p.out) + expert * p.width);
}

}  // namespace combining

static void combine_forward(const CombineParams& p, int64_t begin, int64_t end) {
  switch (p.dtype) {
    case DType::kFloat32:
      return combining::forward<float>(p, begin, end);
    case DType::kBFloat16:
      return combining::forward<bf16>(p, begin, end);
    case DType::kFloat16:
      return combining::forward<fp16>(p, begin, end);
    case DType::kFloat64:
      return combining::forward<double>(p, begin, end);
  }
}

static void combine_backward(const CombineBackwardParams& p, int64_t begin, int64_t end) {
  switch (p.dtype) {
    case DType::kFloat32:
      return combining::backward<float>(p, begin, end);
    case DType::kBFloat16:
      return combining::backward<bf16>(p, begin, end);
    case DType::kFloat16:
      return combining::backward<fp16>(p, begin, end);
    case DType::kFloat64:
      return combining::backward<double>(p, begin, end);
  }
}

static void segment_sum(const SegmentSumParams& p, int64_t expert, int64_t begin, int64_t end) {
  switch (p.dtype) {
    case DType::kFloat32:
      return combining::segment_sum<float>(p, expert, begin, end);
    case DType::kBFloat16:
      return combining::segment_sum<bf16>(p, expert, begin, end);
    case DType::kFloat16:
      return combining::segment_sum<fp16>(p, expert, begin, end);
    case DType::kFloat64:
      return combining::segment_sum<double>(p, expert, begin, end);
  }
}

}  // namespace moe::cpu::MOE_ISA
