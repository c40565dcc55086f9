// Two of the engines that GemmDriver drives, written over a small vector type that each ISA supplies:
//   FloatEngine   one number at a time: float32 (bfloat16 and float16 are widened while packing) and float64
//   PairEngine    pairs of bfloat16 per float32 lane
// Vector types give: Lane, Acc, kWidth, load(), broadcast(), multiply_add(), and for sums load_sum(), add(),
// store_sum().
#pragma once

#include "cpu/vectorized/gemm_driver.h"

namespace moe::cpu::MOE_ISA {

// Vectors half as wide, where there are any: with them, Q panels are filled up to fewer columns.
template <class Vector>
struct HalfOf {
  static constexpr bool kExists = false;
  using type = Vector;
};
template <class Vector>
  requires(Vector::Half::kWidth * 2 == Vector::kWidth)
struct HalfOf<Vector> {
  static constexpr bool kExists = true;
  using type = typename Vector::Half;
};
template <class Vector>
static constexpr int64_t kColumnStep = HalfOf<Vector>::type::kWidth;

// D[kRows, kVectors * kWidth] (+)= P[kRows, k] * Q[k, ...]. A block of k is summed from zero and then added to what is
// there: the rounding error of one long chain of additions would grow with its length.
//
// kHalf: and half a vector of columns more.
//
// A function of its own, and unrolled: inlined, the rows' addresses would not stay in registers.
template <class Vector, int kRows, int kVectors, bool kHalf, bool kKMajor, class Next>
__attribute__((noinline)) static void multiply_panels(const typename Vector::Lane* p, int64_t ldp,
                                                      const typename Vector::Lane* q, int64_t k,
                                                      typename Vector::Acc* d, int64_t ldd, bool accumulate,
                                                      Next& next) {
  using Half = typename HalfOf<Vector>::type;
  constexpr int kWidth = Vector::kWidth, kWhole = kVectors * kWidth, kColumns = kWhole + (kHalf ? kWidth / 2 : 0);
  Vector sums[kRows][kVectors > 0 ? kVectors : 1];
  Half half_sums[kRows];
  for (int64_t k0 = 0, end; k0 < k; k0 = end) {
    end = next.fetch(k0, k);
#pragma GCC unroll 4
    for (int64_t kk = k0; kk < end; ++kk) {
      Vector columns[kVectors > 0 ? kVectors : 1];
      Half half;
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) columns[v] = Vector::load(q + kk * kColumns + v * kWidth);
      if constexpr (kHalf) half = Half::load(q + kk * kColumns + kWhole);
#pragma GCC unroll 16
      for (int i = 0; i < kRows; ++i) {
        const typename Vector::Lane* row = kKMajor ? p + kk * kRows + i : p + i * ldp + kk;
        if constexpr (kVectors > 0) {
          const Vector whole = Vector::broadcast(row);
#pragma GCC unroll 4
          for (int v = 0; v < kVectors; ++v) sums[i][v].multiply_add(whole, columns[v]);
        }
        if constexpr (kHalf) half_sums[i].multiply_add(Half::broadcast(row), half);
      }
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      if (accumulate) sums[i][v].add(Vector::load_sum(d + i * ldd + v * kWidth));
      sums[i][v].store_sum(d + i * ldd + v * kWidth);
    }
    if constexpr (kHalf) {
      if (accumulate) half_sums[i].add(Half::load_sum(d + i * ldd + kWhole));
      half_sums[i].store_sum(d + i * ldd + kWhole);
    }
  }
}

// Chooses how many vectors wide the Q panel is.
template <class Vector, int kRows, int kMaxVectors, bool kKMajor, class Next>
static inline void multiply_panels_of_width(int64_t width, const typename Vector::Lane* p, int64_t ldp,
                                            const typename Vector::Lane* q, int64_t k, typename Vector::Acc* d,
                                            int64_t ldd, bool accumulate, Next& next) {
  if constexpr (kMaxVectors > 0) {
    if (width >= kMaxVectors * Vector::kWidth) {
      if constexpr (HalfOf<Vector>::kExists) {
        if (width > kMaxVectors * Vector::kWidth) {
          multiply_panels<Vector, kRows, kMaxVectors, true, kKMajor>(p, ldp, q, k, d, ldd, accumulate, next);
          return;
        }
      }
      multiply_panels<Vector, kRows, kMaxVectors, false, kKMajor>(p, ldp, q, k, d, ldd, accumulate, next);
      return;
    }
    multiply_panels_of_width<Vector, kRows, kMaxVectors - 1, kKMajor>(width, p, ldp, q, k, d, ldd, accumulate, next);
  } else if constexpr (HalfOf<Vector>::kExists) {
    multiply_panels<Vector, kRows, 0, true, kKMajor>(p, ldp, q, k, d, ldd, accumulate, next);
  }
}

template <class Accumulator>
static void transpose_block(const Accumulator* source, int64_t lds, int64_t source_rows, int64_t source_columns,
                            Accumulator* target, int64_t ldt) {
  int64_t r = 0;
  if constexpr (sizeof(Accumulator) == sizeof(float)) {
    // Both sides are padded to whole tiles, so tiles may reach past the block.
    for (; r < source_rows; r += 16) {
      for (int64_t c = 0; c < source_columns; c += 16)
        transpose16(source + r * lds + c, lds, target + c * ldt + r, ldt);
    }
  } else {
    for (; r < source_rows; ++r) {
      for (int64_t c = 0; c < source_columns; ++c) target[c * ldt + r] = source[r * lds + c];
    }
  }
}

template <class Vector, int kRowsOfP, int kVectorsOfQ, int kGroupColumns, bool kFetches = false>
struct FloatEngine {
  using VectorType = Vector;
  using Packed = typename Vector::Lane;
  using Acc = typename Vector::Acc;
  static constexpr int64_t kP = kRowsOfP;
  static constexpr int64_t kQ = kVectorsOfQ * Vector::kWidth;
  static constexpr int64_t kStep = 1;
  static constexpr int64_t kGroup = kGroupColumns;
  // Also the length of one chain of additions.
  static constexpr int64_t kKBlock = 384;
  static constexpr int64_t kKBlockOfFewRows = kKBlock;
  static constexpr int64_t kSuper = 4 * kGroup;
  static constexpr int64_t kMChunk = 288 / kQ * kQ;
  static constexpr bool kKMajorP = true, kFetchesAhead = kFetches;
  // Up to how many rows FewRowsDriver is faster, and of how many it keeps the sums in registers.
  static constexpr int64_t kFewRows = 16;
  static constexpr int64_t kRowsAtOnce = Vector::kWidth == 16 ? 8 : 4;
  // Keeps the stride of a P panel's rows off powers of two.
  static constexpr int64_t kPad = 64 / sizeof(Packed);
  static_assert(kGroup % kP == 0 && kGroup % kQ == 0 && kGroup % 16 == 0);

  static void begin() {}
  static void end() {}
  static int64_t q_width(int64_t outer) { return round_up(outer, kColumnStep<Vector>); }

  template <class T>
  static void pack_p(const Source<T>& source, int64_t outer0, int64_t outer, int64_t k0, int64_t k, int64_t padded_k,
                     Packed* target, int64_t ld, bool k_major) {
    if (k_major) {
      pack_k_major(source, outer0, outer, k0, k, kP, target);
    } else {
      pack_row_major(source, outer0, outer, kP, k0, k, padded_k, target, ld);
    }
  }

  template <class T>
  static void pack_q(const Source<T>& source, int64_t outer0, int64_t outer, int64_t k0, int64_t k, int64_t,
                     int64_t width, Packed* target) {
    if constexpr (sizeof(Packed) == sizeof(float)) {
      if (source.k_contiguous()) {
        pack_q_from_rows(source, outer0, outer, k0, k, width, target);
        return;
      }
    }
    pack_k_major(source, outer0, outer, k0, k, width, target);
  }

  template <class T>
  static void pack_q_panels(const Source<T>& source, int64_t outer0, int64_t outer, int64_t k0, int64_t k,
                            int64_t padded_k, int64_t last_width, Packed* target, int64_t panel_size) {
    pack_q_panels_of_width<kQ>(source, outer0, outer, k0, k, padded_k, last_width, target, panel_size);
  }

  template <bool, class Next>
  static void micro(bool k_major, const Packed* p, int64_t ldp, int64_t, const Packed* q, int64_t width, int64_t k,
                    Acc* d, int64_t ldd, bool accumulate, Next& next) {
    if (k_major) {
      multiply_panels_of_width<Vector, kRowsOfP, kVectorsOfQ, true>(width, p, ldp, q, k, d, ldd, accumulate, next);
    } else {
      multiply_panels_of_width<Vector, kRowsOfP, kVectorsOfQ, false>(width, p, ldp, q, k, d, ldd, accumulate, next);
    }
  }

  static void transpose(const Acc* source, int64_t lds, int64_t rows, int64_t columns, Acc* target, int64_t ldt) {
    transpose_block(source, lds, rows, columns, target, ldt);
  }
};

// The packing that every engine of bfloat16 pairs shares.
template <int64_t kPRows, int64_t kQColumns>
struct PairPacking {
  using Packed = bf16;
  using Acc = float;
  static constexpr bool kKMajorP = false;
  static constexpr int64_t kPad = 64 / sizeof(Packed);

  template <class T>
  static void pack_p(const Source<T>& source, int64_t outer0, int64_t outer, int64_t k0, int64_t k, int64_t padded_k,
                     Packed* target, int64_t ld, bool) {
    if (!source.k_contiguous() && source.outer_contiguous()) {
      pack_pairs_transposed(source, outer0, outer, kPRows, k0, k, padded_k, target, ld);
    } else {
      pack_row_major(source, outer0, outer, kPRows, k0, k, padded_k, target, ld);
    }
  }

  template <class T>
  static void pack_q(const Source<T>& source, int64_t outer0, int64_t outer, int64_t k0, int64_t k, int64_t padded_k,
                     int64_t width, Packed* target) {
    if (source.k_contiguous()) {
      pack_pairs_from_rows(source, outer0, outer, k0, k, padded_k, width, target);
    } else if (source.outer_contiguous()) {
      pack_pairs_from_columns(source, outer0, outer, k0, k, padded_k, width, target);
    } else {
      pack_pairs_anyhow(source, outer0, outer, k0, k, padded_k, width, target);
    }
  }

  template <class T>
  static void pack_q_panels(const Source<T>& source, int64_t outer0, int64_t outer, int64_t k0, int64_t k,
                            int64_t padded_k, int64_t last_width, Packed* target, int64_t panel_size) {
    pack_q_panels_of_width<kQColumns>(source, outer0, outer, k0, k, padded_k, last_width, target, panel_size);
  }

  static void transpose(const Acc* source, int64_t lds, int64_t rows, int64_t columns, Acc* target, int64_t ldt) {
    transpose_block(source, lds, rows, columns, target, ldt);
  }
};

// kStep is 32, a whole cache line, so that packing can move lines.
template <class Vector, int kRowsOfP, int kVectorsOfQ>
struct PairEngine : PairPacking<kRowsOfP, kVectorsOfQ * Vector::kWidth> {
  static constexpr int64_t kP = kRowsOfP;
  static constexpr int64_t kQ = kVectorsOfQ * Vector::kWidth;
  static constexpr int64_t kStep = 32, kStepOfProducts = 2;
  static constexpr int64_t kGroup = kQ;
  static constexpr int64_t kKBlock = 1024;
  static constexpr int64_t kKBlockOfFewRows = kKBlock;
  static constexpr int64_t kSuper = 4 * kGroup;
  static constexpr int64_t kMChunk = 288 / kQ * kQ;
  static constexpr bool kFetchesAhead = true;

  static void begin() {}
  static void end() {}
  static int64_t q_width(int64_t outer) { return round_up(outer, kColumnStep<Vector>); }

  template <bool, class Next>
  static void micro(bool, const bf16* p, int64_t ldp, int64_t, const bf16* q, int64_t width, int64_t k, float* d,
                    int64_t ldd, bool accumulate, Next& next) {
    using Lane = typename Vector::Lane;
    multiply_panels_of_width<Vector, kRowsOfP, kVectorsOfQ, false>(width, reinterpret_cast<const Lane*>(p), ldp / 2,
                                                                   reinterpret_cast<const Lane*>(q), k / 2, d, ldd,
                                                                   accumulate, next);
  }
};

}  // namespace moe::cpu::MOE_ISA
