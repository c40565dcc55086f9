// A product of very few rows by a weight, each number of which is loaded once, straight from memory. Nothing is
// transposed or split, so the weight is read as fast as memory delivers, in the way that suits the processor.
//
// A sum has as many lanes as a vector: k goes to lane k % kWidth, and the lanes are added at the end. Along k they are
// the lanes of a vector, along columns so many lines of sums; the bits are the same. It is another order than that of
// the other loops: only for jobs that may let it depend on how many rows their expert has.
#pragma once

#include "cpu/isa.h"
#include "cpu/vectorized/few_rows.h"
#include "cpu/vectorized/gemm_driver.h"

namespace moe::cpu::MOE_ISA {

// Rows of an expert up to which dot products are taken.
static constexpr int64_t kMostDotRows = 4;

// For weights of T, which a FloatEngine of float32 widens. kRowsOfWeight of them are read side by side.
template <class T, class Engine, int64_t kRowsOfWeight>
class RowDots : public GemmDriver<T, Engine> {
  using Base = GemmDriver<T, Engine>;
  using Vector = typename Engine::VectorType;
  using Base::job_, Base::plan_, Base::b_, Base::halves_, Base::c_, Base::left;

 public:
  RowDots(const GemmJob& job, void* scratch) : Base(job, scratch) {
    Base::swapped_ = false;
    Base::a_k_major_ = false;
  }

  void run() {
    Base::pack_a();
    const int64_t step = plan_.super_columns / halves_;
    for (int64_t n0 = 0; n0 < job_.n; n0 += step) {
      const int64_t columns = left(job_.n, n0, step);
      const bool along_k = !b_.outer_contiguous();
      const int64_t width = along_k ? kStreams : Engine::kGroup;
      for (int64_t j = 0; j < columns; j += width) {
        for (int64_t half = 0; half < halves_; ++half) {
          float* c = c_ + Base::c_column(half, j);
          if (along_k) {
            multiply_along_k(n0 + j, left(columns, j, width), half, c);
          } else {
            multiply_along_columns(n0 + j, left(columns, j, width), half, c);
          }
        }
      }
      Base::finish(n0, columns);
    }
  }

 private:
  static constexpr int64_t kMostRows = kMostDotRows, kStreams = kRowsOfWeight;
  // A processor's own prefetcher keeps up with one row of a weight after the other where one row of A is multiplied;
  // with more it needs help, from far enough ahead to cross the ends of pages.
  static constexpr bool kIsOneStream = kStreams == 1;
  static constexpr int64_t kAhead = (kIsOneStream ? 8192 : 512) / sizeof(T);
  static constexpr int kLocality = kIsOneStream ? 2 : 3;
  static constexpr int64_t kRun = 512;  // of k: stays in the L1 cache while the rows pass by, some at a time
  static constexpr int64_t kWidth = Vector::kWidth;
  // Whose sums the registers hold.
  static constexpr int kRowsAtOnce = kIsOneStream ? kMostRows : kWidth == 16 ? 2 : 1;
  static constexpr int64_t kLine = 64 / sizeof(T);
  static_assert(Engine::kGroup % kStreams == 0 && kRun % kLine == 0);

  // Sums of one row of A and all streams, lane by lane.
  struct alignas(64) Sums {
    float lanes[kStreams][kWidth];
  };

  const T* address(int64_t column, int64_t half) const { return b_.at(column, 0) + half * job_.pair_offset; }

  void multiply_along_k(int64_t column, int64_t count, int64_t half, float* c) {
    const T* streams[kStreams];
    // A stream that is not there reads another once more.
    for (int64_t s = 0; s < kStreams; ++s) streams[s] = address(column + (s < count ? s : 0), half);
    const bool is_last_half = half == halves_ - 1;
    const int64_t next_column = column + (is_last_half ? kStreams : 0);
    const T* next =
        next_column < job_.n ? address(next_column, is_last_half ? 0 : half + 1) : static_cast<const T*>(job_.next_b);
    Sums sums[kMostRows] = {};
    alignas(64) T copies[kStreams][kRun];
    for (int64_t k0 = 0; k0 < job_.k; k0 += kRun) {
      const int64_t k = left(job_.k, k0, kRun);
      const T* runs[kStreams];
      for (int64_t s = 0; s < kStreams; ++s) {
        runs[s] = b_.k_contiguous() ? streams[s] + k0 : copy(streams[s] + k0 * b_.k_stride, k, copies[s]);
      }
      for (int64_t i = 0; i < job_.m; i += kRowsAtOnce) {
        add_products_of<kRowsAtOnce>(left(job_.m, i, kRowsAtOnce), runs, Base::a_panel(i) + k0,
                                     panel_stride<Engine>(plan_.padded_k), k, sums + i);
      }
    }
    if (!kIsOneStream && next) fetch(next);
    for (int64_t i = 0; i < job_.m; ++i) {
      for (int64_t s = 0; s < kStreams; ++s) c[i * Base::c_stride() + s] = sum_of(sums[i].lanes[s]);
    }
  }

  const T* copy(const T* from, int64_t k, T* to) const {
    for (int64_t kk = 0; kk < k; ++kk) to[kk] = from[kk * b_.k_stride];
    return to;
  }

  void multiply_along_columns(int64_t column, int64_t count, int64_t half, float* c) {
    constexpr int64_t kColumns = Engine::kGroup, kRowsAhead = 8;
    alignas(64) float sums[kMostRows][kWidth][kColumns] = {};
    const T* weight = address(column, half);
    for (int64_t kk = 0; kk < job_.k; ++kk, weight += b_.k_stride) {
      for (int64_t j = 0; j < count; j += kLine) __builtin_prefetch(weight + kRowsAhead * b_.k_stride + j);
      for (int64_t i = 0; i < job_.m; ++i) {
        const float* x = Base::a_panel(i) + kk;
        const Vector row = Vector::broadcast(x);
        float* line = sums[i][kk % kWidth];
        int64_t j = 0;
        for (; j + kWidth <= count; j += kWidth) {
          Vector sum = Vector::load_sum(line + j);
          sum.multiply_add(row, Vector::load(weight + j));
          sum.store_sum(line + j);
        }
        for (; j < count; ++j) line[j] = __builtin_fmaf(*x, to_acc(weight[j]), line[j]);
      }
    }
    for (int64_t i = 0; i < job_.m; ++i) {
      for (int64_t lanes = kWidth / 2; lanes > 0; lanes /= 2) {
        for (int64_t lane = 0; lane < lanes; ++lane) {
          for (int64_t j = 0; j < kColumns; ++j) sums[i][lane][j] += sums[i][lane + lanes][j];
        }
      }
      memcpy(c + i * Base::c_stride(), sums[i][0], count * sizeof(float));
    }
  }

  void fetch(const T* next) const {
    for (int64_t s = 0; s < kStreams; ++s) {
      for (int64_t kk = 0; kk < kAhead && kk < job_.k; kk += kLine) {
        __builtin_prefetch(next + s * b_.outer_stride + kk);
      }
    }
  }

  template <int kMaxRows>
  static void add_products_of(int64_t rows, const T* const* streams, const float* x, int64_t ldx, int64_t k,
                              Sums* sums) {
    if constexpr (kMaxRows > 1) {
      if (rows < kMaxRows) return add_products_of<kMaxRows - 1>(rows, streams, x, ldx, k, sums);
    }
    add_products<kMaxRows>(streams, x, ldx, k, sums);
  }

  template <int kRows>
  static void add_products(const T* const* streams, const float* x, int64_t ldx, int64_t k, Sums* sums) {
    Vector totals[kRows][kStreams];
#pragma GCC unroll 4
    for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 8
      for (int s = 0; s < kStreams; ++s) totals[i][s] = Vector::load_sum(sums[i].lanes[s]);
    }
    int64_t kk = 0;
    for (; kk + kLine <= k; kk += kLine) {
      if constexpr (!kIsOneStream || kRows > 1) {
#pragma GCC unroll 8
        for (int s = 0; s < kStreams; ++s) __builtin_prefetch(streams[s] + kk + kAhead, 0, kLocality);
      }
#pragma GCC unroll 4
      for (int64_t v = 0; v < kLine; v += kWidth) {
        Vector rows[kRows];
#pragma GCC unroll 4
        for (int i = 0; i < kRows; ++i) rows[i] = Vector::load(x + i * ldx + kk + v);
#pragma GCC unroll 8
        for (int s = 0; s < kStreams; ++s) {
          const Vector weight = Vector::load(streams[s] + kk + v);
#pragma GCC unroll 4
          for (int i = 0; i < kRows; ++i) totals[i][s].multiply_add(rows[i], weight);
        }
      }
    }
#pragma GCC unroll 4
    for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 8
      for (int s = 0; s < kStreams; ++s) totals[i][s].store_sum(sums[i].lanes[s]);
    }
    for (; kk < k; ++kk) {
      for (int i = 0; i < kRows; ++i) {
        for (int s = 0; s < kStreams; ++s) {
          float& sum = sums[i].lanes[s][kk % kWidth];
          sum = __builtin_fmaf(x[i * ldx + kk], to_acc(streams[s][kk]), sum);
        }
      }
    }
  }

  static float sum_of(float* lanes) {
    for (int64_t count = kWidth / 2; count > 0; count /= 2) {
      for (int64_t lane = 0; lane < count; ++lane) lanes[lane] += lanes[lane + count];
    }
    return lanes[0];
  }
};

static bool takes_row_dots(const GemmJob& job) {
  return job.expert_rows > 0 && job.expert_rows <= kMostDotRows && !job.b.index;
}

template <class T, class Engine>
static void run_row_dots(const GemmJob& job, void* scratch) {
  if (reads_side_by_side()) {
    RowDots<T, Engine, 8>(job, scratch).run();
  } else {
    RowDots<T, Engine, 1>(job, scratch).run();
  }
}

// A kernel for T, but for jobs of very few rows.
template <class T, class Engine, const GemmKernel& kKernel>
static constexpr GemmKernel with_row_dots() {
  GemmKernel kernel = kKernel;
  kernel.run = [](const GemmJob& job, void* scratch) {
    if (takes_row_dots(job)) {
      run_row_dots<T, Engine>(job, scratch);
    } else {
      kKernel.run(job, scratch);
    }
  };
  kernel.scratch_bytes = [](const GemmJob& job) {
    return takes_row_dots(job) ? gemm_scratch_bytes<Engine>(job) : kKernel.scratch_bytes(job);
  };
  return kernel;
}

template <class T, class Engine>
static constexpr GemmKernel kFloatGemm = float_gemm_kernel<T, Engine>();

// float_gemm_kernel, but for jobs of very few rows.
template <class T, class Engine>
static constexpr GemmKernel few_rows_kernel() {
  return with_row_dots<T, Engine, kFloatGemm<T, Engine>>();
}

}  // namespace moe::cpu::MOE_ISA
