// A product of few rows by a weight that is contiguous along k, for FloatEngine. Tiles of 16 columns of the weight are
// transposed in cache, which makes columns the vectors, so that a row costs as many additions as it has columns: rows
// as vectors would be mostly empty. Sixteen rows of the weight are read side by side along all of k, as memory likes
// it.
//
// Every sum has the order of FloatEngine, so its bits do not depend on how many rows there are.
#pragma once

#include "cpu/vectorized/engines.h"

namespace moe::cpu::MOE_ISA {

// sums[kRows][16] += x[kRows, k] * columns[k, 16], continuing where they stand.
template <class Vector, int kRows>
static inline void continue_sums(const float* x, int64_t ldx, const float* columns, int64_t k, float* sums) {
  constexpr int kWidth = Vector::kWidth, kVectors = 16 / kWidth;
  Vector sum[kRows][kVectors];
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) sum[i][v] = Vector::load_sum(sums + i * 16 + v * kWidth);
  }
  for (int64_t kk = 0; kk < k; ++kk) {
    Vector column[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) column[v] = Vector::load(columns + kk * 16 + v * kWidth);
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
      const Vector row = Vector::broadcast(x + i * ldx + kk);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sum[i][v].multiply_add(row, column[v]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) sum[i][v].store_sum(sums + i * 16 + v * kWidth);
  }
}

template <class Vector, int kMaxRows>
static inline void continue_sums_of(int64_t rows, const float* x, int64_t ldx, const float* columns, int64_t k,
                                    float* sums) {
  if constexpr (kMaxRows > 1) {
    if (rows < kMaxRows) {
      continue_sums_of<Vector, kMaxRows - 1>(rows, x, ldx, columns, k, sums);
      return;
    }
  }
  continue_sums<Vector, kMaxRows>(x, ldx, columns, k, sums);
}

template <class T, class Engine>
class FewRowsDriver : public GemmDriver<T, Engine> {
  using Base = GemmDriver<T, Engine>;
  using Vector = typename Engine::VectorType;
  using Base::job_, Base::plan_, Base::b_, Base::halves_, Base::c_, Base::left;

 public:
  static bool takes(const GemmJob& job) { return job.m <= Engine::kFewRows && job.b.k_stride == 1 && !job.b.index; }

  FewRowsDriver(const GemmJob& job, void* scratch) : Base(job, scratch) {
    Base::swapped_ = false;
    Base::a_k_major_ = false;
  }

  void run() {
    Base::pack_a();
    const int64_t step = plan_.super_columns / halves_;
    for (int64_t n0 = 0; n0 < job_.n; n0 += step) {
      const int64_t columns = left(job_.n, n0, step);
      for (int64_t half = 0; half < halves_; ++half) {
        for (int64_t j = 0; j < columns; j += 16) {
          multiply(n0 + j, left(columns, j, 16), half, c_ + Base::c_column(half, j));
        }
      }
      Base::finish(n0, columns);
    }
  }

 private:
  static constexpr int64_t kRun = 64;  // of k, transposed at once
  static constexpr int64_t kAhead = 512 / sizeof(T);
  static_assert(Engine::kKBlock % kRun == 0 && Engine::kGroup % 16 == 0);

  void multiply(int64_t column, int64_t count, int64_t half, float* c) {
    const int64_t ldx = panel_stride<Engine>(plan_.padded_k);
    const T* rows[16];
    for (int64_t j = 0; j < 16; ++j) {
      rows[j] = b_.at(column + (j < count ? j : 0), 0) + half * job_.pair_offset;
    }
    alignas(64) float columns[kRun * 16], sums[Engine::kFewRows * 16] = {};
    if (job_.k == 0) store(sums, c, false);
    for (int64_t k0 = 0; k0 < job_.k; k0 += kRun) {
      const int64_t k = left(job_.k, k0, kRun);
      transpose_run(rows, k0, k, columns);
      for (int64_t i = 0; i < job_.m; i += Engine::kRowsAtOnce) {
        continue_sums_of<Vector, Engine::kRowsAtOnce>(left(job_.m, i, Engine::kRowsAtOnce),
                                                      Base::packed_a_ + i * ldx + k0, ldx, columns, k, sums + i * 16);
      }
      const int64_t end = k0 + k;
      if (end % Engine::kKBlock == 0 || end == job_.k) {
        store(sums, c, end > Engine::kKBlock);
        memset(sums, 0, sizeof(sums));
      }
    }
  }

  // Lines of 64 bytes of each row; numbers of 16 bits are turned in pairs and then widened.
  static void transpose_run(const T* const* rows, int64_t k0, int64_t k, float* columns) {
    constexpr int64_t kLine = 64 / sizeof(T);
    alignas(64) T tile[16][kLine];
    alignas(64) float turned[16 * 16];
    for (int64_t kk = 0; kk < k; kk += kLine) {
      const bool whole = k - kk >= kLine;
      const float* lines[16];
#pragma GCC unroll 16
      for (int64_t j = 0; j < 16; ++j) {
        const T* from = rows[j] + k0 + kk;
        __builtin_prefetch(from + kAhead);
        if (!whole) memcpy(tile[j], from, (k - kk) * sizeof(T));
        lines[j] = reinterpret_cast<const float*>(whole ? from : tile[j]);
      }
      if constexpr (sizeof(T) == sizeof(float)) {
        transpose16_rows(lines, columns + kk * 16, 16);
      } else {
        transpose16_rows(lines, turned, 16);
        for (int64_t pair = 0; pair < 16; ++pair) {
          float* first = columns + (kk + 2 * pair) * 16;
          for (int64_t j = 0; j < 16; ++j) {
            const auto bits = static_cast<uint32_t>(bits_of(turned[pair * 16 + j]));
            first[j] = to_acc(T{static_cast<uint16_t>(bits)});
            first[16 + j] = to_acc(T{static_cast<uint16_t>(bits >> 16)});
          }
        }
      }
    }
  }

  void store(const float* sums, float* c, bool accumulate) const {
    for (int64_t i = 0; i < job_.m; ++i) {
      float* to = c + i * Base::c_stride();
      for (int64_t j = 0; j < 16; ++j) to[j] = accumulate ? sums[i * 16 + j] + to[j] : sums[i * 16 + j];
    }
  }
};

template <class T, class Engine>
static void run_float_gemm(const GemmJob& job, void* scratch) {
  if (FewRowsDriver<T, Engine>::takes(job)) {
    FewRowsDriver<T, Engine>(job, scratch).run();
  } else {
    run_gemm<T, Engine>(job, scratch);
  }
}

template <class T, class Engine>
static constexpr GemmKernel float_gemm_kernel() {
  GemmKernel kernel = gemm_kernel<T, Engine>();
  kernel.run = run_float_gemm<T, Engine>;
  return kernel;
}

}  // namespace moe::cpu::MOE_ISA
