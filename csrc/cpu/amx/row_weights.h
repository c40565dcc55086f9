// A job whose B, an expert's weight, is contiguous along k: the forward products.
//
// B's rows are P where they lie in memory, 32 at a time, so a weight is neither transposed nor copied; A's rows are
// turned into Q once per job, and the result comes out turned. While 32 rows of B are multiplied the next 32 are
// fetched into the L2 cache.
#pragma once

#include "cpu/amx/pack.h"
#include "cpu/amx/turned_epilogue.h"

namespace moe::cpu::MOE_ISA {

class RowWeightGemm {
 public:
  static bool takes(const GemmJob& job) {
    const bool a_fits = job.a.k_stride == 1 && !job.a.index_along_k;
    const bool b_fits = !job.b.is_tiled && job.b.k_stride == 1 && !job.b.index;
    const bool stores = job.epilogue == Epilogue::kStore || job.epilogue == Epilogue::kStoreSums;
    const bool kind_fits = job.epilogue == Epilogue::kActivation || (stores && job.params->out_col_stride == 1);
    return a_fits && b_fits && kind_fits && job.k > 0;
  }

  static int64_t scratch_bytes(int64_t m, int64_t k) {
    return (tiles_of(m) * kTile + kPanelStep) * steps_of(k) +
           3 * kPanel * c_stride(m) * static_cast<int64_t>(sizeof(float));
  }

  RowWeightGemm(const GemmJob& job, void* scratch)
      : job_(job),
        a_(job.a),
        b_(job.b),
        halves_(job.pair_offset ? 2 : 1),
        steps_(steps_of(job.k)),
        num_panels_(panels_of(job.n) * halves_),
        ldc_(c_stride(job.m)),
        q_(static_cast<char*>(scratch)),
        copied_(q_ + tiles_of(job.m) * steps_ * kTile),
        c_(reinterpret_cast<float*>(copied_ + steps_ * kPanelStep)) {}

  void run() {
    begin_tiles();
    transpose_rows(a_, job_.m, job_.k, q_);
    for (int64_t index = 0; index < num_panels_; ++index) {
      multiply(index);
      if (index % halves_ < halves_ - 1) continue;
      const Panel panel = panel_at(index);
      const TurnedGroup result = {
          c_, c_ + kPanel * ldc_, c_ + 2 * kPanel * ldc_, ldc_, job_.row0, job_.m, job_.col0 + panel.row, panel.rows};
      run_turned_epilogue(job_.epilogue, *job_.params, result);
    }
    if (job_.params->is_cold) _mm_sfence();
    end_tiles();
  }

 private:
  // Up to 32 rows of B, of gate and of up in turn.
  struct Panel {
    Source<bf16> source;
    int64_t row, rows;

    const char* data() const { return reinterpret_cast<const char*>(source.at(row, 0)); }
  };

  // Fetches a panel, some lines in each step: four rows from end to end, then the next four. What fetches ahead in the
  // core itself follows few streams better than 32.
  struct Fetch {
    const char* panel;
    int64_t row_bytes, row_lines, lines_per_step, fetched = 0, at = 0;

    __attribute__((always_inline)) void step() {
      for (int64_t i = 0; i < lines_per_step && fetched < kPanel * row_lines; i += kAtOnce, fetched += kAtOnce) {
#pragma GCC unroll 4
        for (int64_t r = 0; r < kAtOnce; ++r) _mm_prefetch(panel + r * row_bytes + at * 64, _MM_HINT_T1);
        if (++at < row_lines) continue;
        at = 0;
        panel += kAtOnce * row_bytes;
      }
    }
    static constexpr int64_t kAtOnce = 4;
  };

  // An odd number of lines, or all of c would share few sets of the L1 cache.
  static constexpr int64_t c_stride(int64_t m) { return (tiles_of(m) | 1) * kTileSide; }

  Panel panel_at(int64_t index) const {
    const int64_t row = index / halves_ * kPanel;
    Panel panel = {b_, row, smaller(kPanel, job_.n - row)};
    panel.source.data += index % halves_ * job_.pair_offset;
    return panel;
  }

  void multiply(int64_t index) {
    const Panel panel = panel_at(index);
    TileRun p = TileRun::rows(panel.data(), b_.outer_stride * 2);
    if (panel.rows < kPanel || job_.k % kStepK) {
      pack_rows(panel.source, panel.row, panel.row + panel.rows, job_.k, copied_);
      p = TileRun::tiles(copied_, steps_);
    }
    Fetch fetch = {static_cast<const char*>(job_.next_b), b_.outer_stride * 2, 0, 0};
    if (index + 1 < num_panels_) fetch.panel = panel_at(index + 1).data();
    // The last panel of an expert may have fewer rows: what lies behind them is fetched for nothing.
    if (fetch.panel) fetch.row_lines = steps_;
    const int64_t tiles = tiles_of(job_.m);
    fetch.lines_per_step = ((kPanel - 1) / turns_of(tiles) / Fetch::kAtOnce + 1) * Fetch::kAtOnce;
    float* c = c_ + index % halves_ * kPanel * ldc_;
    for (int64_t tile = 0; tile < tiles;) {
      const int64_t count = tiles_at_once(tiles - tile);
      with_tiles(count, [&]<int kTiles>() {
        const TileRun q = TileRun::tiles(q_ + tile * steps_ * kTile, steps_);
        multiply_tiles<2, kTiles>(p, q, steps_, c + tile * kTileSide, ldc_, false, fetch);
      });
      tile += count;
    }
  }

  const GemmJob& job_;
  const Source<bf16> a_, b_;
  const int64_t halves_, steps_, num_panels_, ldc_;
  char* q_;
  char* copied_;
  float* c_;
};

}  // namespace moe::cpu::MOE_ISA
