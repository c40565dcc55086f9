// A job that sums over rows: the weight gradients. Both operands are contiguous across the sum, A becomes P and B
// becomes Q, whole, and each 32 by 32 elements of the result are finished at once: a weight gradient is as large as the
// weights, written once and not read again, so nothing of it is kept in a cache. Sums are short, and what sets the pace
// is their way to memory: six tiles at once are no faster than four.
#pragma once

#include "cpu/amx/pack.h"
#include "cpu/amx/straight_epilogue.h"

namespace moe::cpu::MOE_ISA {

class WeightGradientGemm {
 public:
  // That the sum runs over. With more, too little of A would fit the L2 cache, and B is packed for each piece of A.
  static constexpr int64_t kMaxRows = 4096;

  static bool takes(const GemmJob& job) {
    const auto fits = [](const GemmOperand& x) { return x.outer_stride == 1 && (!x.index || x.index_along_k); };
    const bool is_sum = (job.a.index && job.a.index_along_k) || job.a.k_stride != 1;
    return is_sum && fits(job.a) && fits(job.b) && job.epilogue == Epilogue::kStore && !job.params->bias &&
           job.params->out_col_stride == 1 && job.k > 0 && job.k <= kMaxRows;
  }

  static int64_t row_chunk(int64_t k) {
    const int64_t padded_k = steps_of(k) * kStepK, elements = (padded_k <= 512 ? 256 : 512) << 10;
    return smaller(elements / padded_k, 2048) / kPanel * kPanel;
  }
  static int64_t scratch_bytes(int64_t m, int64_t k) { return (panels_of(m) + q_panels(k)) * steps_of(k) * kPanelStep; }

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
      transpose_columns(rows, job_.k, i, smaller(kPanel, job_.m - i), p_panel(i));
    }
    find_rows(job_.b, rows);
    const int64_t block_columns = q_panels(job_.k) * kPanel;
    for (int64_t j0 = 0; j0 < job_.n; j0 += block_columns) {
      const int64_t columns = smaller(job_.n - j0, block_columns);
      for (int64_t j = 0; j < columns; j += kPanel) {
        interleave_columns(rows, job_.k, j0 + j, smaller(kPanel, columns - j), q_panel(j), steps_);
      }
      for (int64_t i = 0; i < job_.m; i += kPanel) {
        for (int64_t j = 0; j < columns; j += kPanel) multiply(i, j0, j);
      }
    }
    finish_.rest();
    _mm_sfence();
    end_tiles();
  }

 private:
  // Half a MiB of B at a time.
  static int64_t q_panels(int64_t k) { return smaller(16, 256 / steps_of(k)); }

  void find_rows(const GemmOperand& operand, const bf16** rows) const {
    const Source<bf16> source(operand);
    for (int64_t kk = 0; kk < job_.k; ++kk) rows[kk] = source.at(0, kk);
  }
  char* p_panel(int64_t i) const { return p_ + i / kPanel * steps_ * kPanelStep; }
  char* q_panel(int64_t j) const { return q_ + j / kPanel * steps_ * kPanelStep; }

  // 32 by 32 sums on their way to the result, some rows in each step of the product that follows them.
  struct Finish {
    const float* c = nullptr;
    bf16* out = nullptr;
    int64_t row_stride = 0, rows = 0, rows_per_step = 0, done = 0;
    uint32_t mask = 0;
    bool streams = false;

    __attribute__((always_inline)) void step() {
      for (int64_t end = done + rows_per_step; done < end; ++done) {
        if (done >= rows) return;
        const __m512i line = round_line(c + done * kPanel);
        bf16* to = out + done * row_stride;
        store_line(line, mask, to, streams);
      }
    }
    void rest() {
      rows_per_step = rows;
      step();
    }
  };

  void multiply(int64_t i, int64_t j0, int64_t j) {
    float* c = c_[turn_ ^= 1];
    multiply_tiles<2, 2>(TileRun::tiles(p_panel(i), steps_), TileRun::tiles(q_panel(j), steps_), steps_, c, kPanel,
                         false, finish_);
    finish_.rest();
    const EpilogueParams& p = *job_.params;
    finish_.c = c;
    finish_.out = static_cast<bf16*>(p.out) + (job_.row0 + i) * p.out_row_stride + job_.col0 + j0 + j;
    finish_.row_stride = p.out_row_stride;
    finish_.rows = smaller(kPanel, job_.m - i);
    finish_.rows_per_step = (kPanel + steps_ - 1) / steps_;
    finish_.done = 0;
    finish_.mask = mask_of(job_.n - j0 - j);
    finish_.streams = finish_.mask == ~0u && are_lines(finish_.out, p.out_row_stride);
  }

  alignas(64) float c_[2][kPanel * kPanel];
  Finish finish_;
  int turn_ = 0;
  const GemmJob& job_;
  const int64_t steps_;
  char* p_;
  char* q_;
};

}  // namespace moe::cpu::MOE_ISA
