// A job that sums over rows: the weight gradients. Both operands are contiguous across the sum, A becomes P and B
// becomes Q, whole, and each 32 by 32 elements of the result are finished at once: a weight gradient is as large as the
// weights, written once and not read again, so nothing of it is kept in a cache.
#pragma once

#include "cpu/amx/pack.h"
#include "cpu/amx/straight_epilogue.h"

namespace moe::cpu::MOE_ISA {

class WeightGradientGemm {
 public:
  static constexpr int64_t kMaxRows = 512;  // that the sum runs over: more need several passes over the result
  static constexpr int64_t kElements = int64_t{256} << 10;  // of A that a job packs

  static bool takes(const GemmJob& job) {
    const auto fits = [](const GemmOperand& x) { return x.outer_stride == 1 && (!x.index || x.index_along_k); };
    const bool is_sum = (job.a.index && job.a.index_along_k) || job.a.k_stride != 1;
    return is_sum && fits(job.a) && fits(job.b) && job.epilogue == Epilogue::kStore && !job.params->bias &&
           job.params->out_col_stride == 1 && job.k > 0 && job.k <= kMaxRows;
  }

  static int64_t row_chunk(int64_t k) { return smaller(kElements / (steps_of(k) * kStepK), 2048) / kPanel * kPanel; }
  static int64_t scratch_bytes(int64_t m, int64_t k) { return (panels_of(m) + kQPanels) * steps_of(k) * kPanelStep; }

  WeightGradientGemm(const GemmJob& job, void* scratch)
      : job_(job),
        steps_(steps_of(job.k)),
        p_(static_cast<char*>(scratch)),
        q_(p_ + panels_of(job.m) * steps_ * kPanelStep) {}

  void run() {
    begin_tiles();
    const bf16* rows[kMaxRows];
    find_rows(job_.a, rows);
    for (int64_t i = 0; i < job_.m; i += kPanel) {
      transpose_columns(rows, job_.k, i, smaller(kPanel, job_.m - i), p_ + i / kPanel * steps_ * kPanelStep);
    }
    find_rows(job_.b, rows);
    for (int64_t j0 = 0; j0 < job_.n; j0 += kQPanels * kPanel) {
      const int64_t columns = smaller(job_.n - j0, kQPanels * kPanel);
      for (int64_t j = 0; j < columns; j += kPanel) {
        interleave_columns(rows, job_.k, j0 + j, smaller(kPanel, columns - j), q_panel(j));
      }
      for (int64_t i = 0; i < job_.m; i += kPanel) {
        for (int64_t j = 0; j < columns; j += kPanel) multiply(i, j0, j);
      }
    }
    _mm_sfence();
    end_tiles();
  }

 private:
  static constexpr int64_t kQPanels = 16;

  void find_rows(const GemmOperand& operand, const bf16** rows) const {
    const Source<bf16> source(operand);
    for (int64_t kk = 0; kk < job_.k; ++kk) rows[kk] = source.at(0, kk);
  }
  char* q_panel(int64_t j) const { return q_ + j / kPanel * steps_ * kPanelStep; }

  void multiply(int64_t i, int64_t j0, int64_t j) {
    alignas(64) float c[kPanel * kPanel];
    NoShadow none;
    multiply_tiles<2>(TileRun::packed(p_ + i / kPanel * steps_ * kPanelStep), TileRun::packed(q_panel(j)), steps_, c,
                      kPanel, false, none);
    const EpilogueParams& p = *job_.params;
    const int64_t rows = smaller(kPanel, job_.m - i), column = job_.col0 + j0 + j;
    const uint32_t mask = mask_of(job_.n - j0 - j);
    bf16* out = static_cast<bf16*>(p.out) + (job_.row0 + i) * p.out_row_stride + column;
    const bool streams = mask == ~0u && reinterpret_cast<uintptr_t>(out) % 64 == 0 && p.out_row_stride % kPanel == 0;
    for (int64_t r = 0; r < rows; ++r, out += p.out_row_stride) {
      const __m512i line = round_line(c + r * kPanel);
      if (streams) {
        _mm512_stream_si512(reinterpret_cast<__m512i*>(out), line);
      } else {
        _mm512_mask_storeu_epi16(out, mask, line);
      }
    }
  }

  const GemmJob& job_;
  const int64_t steps_;
  char* p_;
  char* q_;
};

}  // namespace moe::cpu::MOE_ISA
