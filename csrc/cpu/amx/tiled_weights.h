// A job whose B, an expert's weight, was tiled beforehand (moe/tiled_weights.h): panels of 32 columns that are Q as
// they lie, gate before up.
//
// A's rows are copied to panels of P, once per job. 32 rows by 32 columns (of gate and of up) are finished at a time;
// while they are multiplied, those before them go through the epilogue and the next panels are fetched from memory.
#pragma once

#include "cpu/amx/pack.h"
#include "cpu/amx/straight_epilogue.h"

namespace moe::cpu::MOE_ISA {

class TiledWeightGemm {
 public:
  static bool takes(const GemmJob& job) { return job.b.is_tiled; }

  static int64_t scratch_bytes(int64_t m, int64_t k) { return panels_of(m) * steps_of(k) * kPanelStep; }

  TiledWeightGemm(const GemmJob& job, void* scratch)
      : job_(job),
        a_(job.a),
        halves_(job.pair_offset ? 2 : 1),
        steps_(steps_of(job.k)),
        panel_bytes_(steps_ * kPanelStep),
        p_(static_cast<char*>(scratch)),
        finish_(job) {}

  void run() {
    begin_tiles();
    pack_rows(a_, job_.m, job_.k, p_);
    const char* group = static_cast<const char*>(job_.b.data);
    const int64_t group_bytes = halves_ * panel_bytes_;
    for (int64_t j = 0; j < job_.n; j += kPanel, group += group_bytes) {
      const char* next = j + kPanel < job_.n ? group + group_bytes : static_cast<const char*>(job_.next_b);
      Fetch fetch(next, group_bytes, panels_of(job_.m) * halves_ * steps_);
      for (int64_t i = 0; i < job_.m; i += kPanel) multiply(group, i, j, fetch);
    }
    finish_.rest();
    if (job_.params->is_cold) _mm_sfence();
    end_tiles();
  }

 private:
  // Fetches bytes from four places at once, some lines in each step: memory delivers more to several streams.
  class Fetch {
   public:
    Fetch(const char* from, int64_t bytes, int64_t steps)
        : at_(from),
          quarter_(bytes / kStreams),
          left_(from ? quarter_ / 64 : 0),
          per_step_((left_ + steps - 1) / steps) {}

    __attribute__((always_inline)) void step() {
      for (int64_t i = 0; i < per_step_ && left_ > 0; ++i, --left_, at_ += 64) {
#pragma GCC unroll 4
        for (int64_t s = 0; s < kStreams; ++s) _mm_prefetch(at_ + s * quarter_, _MM_HINT_T1);
      }
    }

   private:
    static constexpr int64_t kStreams = 4;
    const char* at_;
    int64_t quarter_, left_, per_step_;
  };

  // 32 by 32 sums, of gate and of up, on their way to the result: row by row in the shadow of the product that follows
  // where that is all there is to do, else at once.
  class Finish {
   public:
    explicit Finish(const GemmJob& job) : job_(job), is_plain_(plain(job)) {}

    void begin(const float* sums, int64_t row, int64_t rows, int64_t column, int64_t steps) {
      const EpilogueParams& p = *job_.params;
      if (!is_plain_) {
        EpilogueBlock<float> block = {};
        block.gate = const_cast<float*>(sums);
        block.up = block.gate + kPanel * kPanel;
        block.ld = kPanel;
        block.row0 = job_.row0 + row;
        block.rows = rows;
        block.col0 = job_.col0 + column;
        block.columns = kPanel;
        EpilogueOf<bf16, float>::run(job_.epilogue, p, block, kPanel);
        return;
      }
      activates_ = job_.epilogue == Epilogue::kActivation;
      stride_ = activates_ ? p.act_stride : p.out_row_stride;
      out_ = static_cast<bf16*>(activates_ ? p.act : p.out) + (job_.row0 + row) * stride_ + job_.col0 + column;
      streams_ = p.is_cold && are_lines(out_, stride_);
      sums_ = sums;
      left_ = rows;
      per_step_ = (rows + steps - 1) / steps;
    }

    __attribute__((always_inline)) void step() {
      for (int64_t i = 0; i < per_step_ && left_ > 0; ++i, --left_, sums_ += kPanel, out_ += stride_) {
        if (activates_) {
          const float* up = sums_ + kPanel * kPanel;
          const __m512 low = fast_swiglu(_mm512_load_ps(sums_), _mm512_load_ps(up));
          const __m512 high = fast_swiglu(_mm512_load_ps(sums_ + kTileSide), _mm512_load_ps(up + kTileSide));
          WideLine{low, high}.store(~0u, out_, streams_);
        } else {
          store_line(round_line(sums_), ~0u, out_, streams_);
        }
      }
    }
    void rest() {
      per_step_ = left_;
      step();
    }

   private:
    static bool plain(const GemmJob& job) {
      const EpilogueParams& p = *job.params;
      if (p.bias) return false;
      if (job.epilogue == Epilogue::kStore) return p.out_col_stride == 1;
      return job.epilogue == Epilogue::kActivation && p.activation.kind == Activation::kSwiglu && !p.preact && p.act &&
             !p.weights_on_input;
    }

    const GemmJob& job_;
    const bool is_plain_;
    bool activates_ = false, streams_ = false;
    const float* sums_ = nullptr;
    bf16* out_ = nullptr;
    int64_t stride_ = 0, left_ = 0, per_step_ = 0;
  };

  struct Shadow {
    Fetch& fetch;
    Finish& finish;

    __attribute__((always_inline)) void step() {
      fetch.step();
      finish.step();
    }
  };

  void multiply(const char* group, int64_t i, int64_t j, Fetch& fetch) {
    const int64_t rows = smaller(kPanel, job_.m - i);
    float* sums = sums_[turn_ ^= 1];
    Shadow shadow = {fetch, finish_};
    const TileRun p = TileRun::packed(p_ + i / kPanel * panel_bytes_);
    for (int64_t half = 0; half < halves_; ++half) {
      const TileRun q = TileRun::packed(group + half * panel_bytes_);
      float* d = sums + half * kPanel * kPanel;
      if (rows > kTileSide) {
        multiply_tiles<2, 2>(p, q, steps_, d, kPanel, false, shadow);
      } else {
        multiply_tiles<1, 2>(p, q, steps_, d, kPanel, false, shadow);
      }
    }
    finish_.rest();
    finish_.begin(sums, i, rows, j, halves_ * steps_);
  }

  alignas(64) float sums_[2][2 * kPanel * kPanel];
  int turn_ = 0;
  const GemmJob& job_;
  const Source<bf16> a_;
  const int64_t halves_, steps_, panel_bytes_;
  char* p_;
  Finish finish_;
};

}  // namespace moe::cpu::MOE_ISA
