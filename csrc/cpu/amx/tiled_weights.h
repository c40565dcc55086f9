// A job whose B, an expert's weight, was tiled beforehand (moe/tiled_weights.h): panels of 32 columns that are Q as
// they lie, gate before up.
//
// A's rows are copied to tiles of P, once per job. 48 rows by 32 columns (of gate and of up) are finished at a time;
// while they are multiplied, those before them go through the epilogue and the next panels are fetched from memory.
#pragma once

#include "cpu/amx/pack.h"
#include "cpu/amx/straight_epilogue.h"

namespace moe::cpu::MOE_ISA {

class TiledWeightGemm {
 public:
  static bool takes(const GemmJob& job) { return job.b.is_tiled; }

  static int64_t scratch_bytes(int64_t m, int64_t k) { return tiles_of(m) * steps_of(k) * kTile; }

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
    pack_rows(a_, 0, job_.m, job_.k, p_);
    const char* group = static_cast<const char*>(job_.b.data);
    const int64_t group_bytes = halves_ * panel_bytes_;
    for (int64_t j = 0; j < job_.n; j += kPanel, group += group_bytes) {
      next_ = j + kPanel < job_.n ? group + group_bytes : static_cast<const char*>(job_.next_b);
      int64_t turn = 0;
      for (int64_t tile = 0; tile < tiles_of(job_.m); ++turn) {
        const int64_t count = tiles_at_once(tiles_of(job_.m) - tile);
        with_tiles(count, [&]<int kTiles>() { multiply<kTiles>(group, tile, turn); });
        finish_.rest();
        const int64_t i = tile * kTileSide;
        finish_.begin(sums_[which_], i, smaller(count * kTileSide, job_.m - i), j);
        tile += count;
      }
    }
    finish_.rest();
    if (job_.params->is_cold) _mm_sfence();
    end_tiles();
  }

 private:
  static constexpr int64_t kPanelLines = kPanelStep / 64;  // of a step

  // How many lines of the next group to fetch in each step, while this one is multiplied with the rows in turns.
  static constexpr int64_t lines_of_step(int64_t turns, int64_t turn) {
    const int64_t lines = turns >= 8 ? 4 : turns >= 4 ? 8 : turns == 3 ? (turn < 2 ? 12 : 8) : 16;
    return turn * lines < kPanelLines ? lines : 0;
  }

  // Sums of up to 48 rows by 32 columns, of gate and of up, on their way to the result: row by row in the shadow of the
  // product that follows where that is all there is to do, else at once.
  class Finish {
   public:
    explicit Finish(const GemmJob& job) : job_(job), is_plain_(plain(job)) {}

    int64_t rows_left() const { return left_; }

    void begin(const float* sums, int64_t row, int64_t rows, int64_t column) {
      const EpilogueParams& p = *job_.params;
      if (!is_plain_) {
        EpilogueBlock<float> block = {};
        block.gate = const_cast<float*>(sums);
        block.up = block.gate + kUp;
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
    }

    __attribute__((always_inline)) void row() {
      if (activates_) {
        const float* up = sums_ + kUp;
        const __m512 low = fast_swiglu(_mm512_load_ps(sums_), _mm512_load_ps(up));
        const __m512 high = fast_swiglu(_mm512_load_ps(sums_ + kTileSide), _mm512_load_ps(up + kTileSide));
        WideLine{low, high}.store(~0u, out_, streams_);
      } else {
        store_line(round_line(sums_), ~0u, out_, streams_);
      }
      sums_ += kPanel;
      out_ += stride_;
      --left_;
    }
    void rest() {
      while (left_ > 0) row();
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
    int64_t stride_ = 0, left_ = 0;
  };

  // What to fetch in each step, in few instructions: they take places in the core that loads to come would have.
  //
  // The next group, from four places at once, kLines of each in a step: memory delivers more to several streams.
  template <int kLines>
  struct FetchGroup {
    const char*& at;
    int64_t quarter;

    __attribute__((always_inline)) void step() {
      const char* const from[4] = {at, at + quarter, at + 2 * quarter, at + 3 * quarter};
#pragma GCC unroll 16
      for (int line = 0; line < kLines; ++line) {
#pragma GCC unroll 4
        for (const char* place : from) _mm_prefetch(place + line * 64, _MM_HINT_T1);
      }
      at += kLines * 64;
    }
  };
  // With few rows reading is all that counts, and a short lead does best; the last of it goes to the next job.
  struct FetchAhead {
    static constexpr int64_t kLead = 16;  // steps
    const char* at;
    const char* next;
    int64_t left;

    __attribute__((always_inline)) void step() {
      if (left-- == 0) at = next;
#pragma GCC unroll 32
      for (int line = 0; line < kPanelLines; ++line) _mm_prefetch(at + line * 64, _MM_HINT_T1);
      at += kPanelStep;
    }
  };

  template <int kTiles>
  void multiply(const char* group, int64_t tile, int64_t turn) {
    const int64_t turns = turns_of(tiles_of(job_.m));
    if (turn == 0) fetch_ = next_;
    const bool is_last = next_ == job_.next_b;
    which_ ^= 1;
    for (int64_t half = 0; half < halves_; ++half) {
      const Product product = {TileRun::tiles(p_ + tile * steps_ * kTile, steps_),
                               TileRun::panel(group + half * panel_bytes_), sums_[which_] + half * kUp};
      if (turns == 1) {
        const bool ends = is_last && half == halves_ - 1;
        const int64_t lead = smaller(steps_, FetchAhead::kLead);
        run<kTiles>(product, FetchAhead{product.q.data + lead * kPanelStep, next_ && ends ? next_ : product.q.data,
                                        ends ? steps_ - lead : steps_});
        continue;
      }
      const int64_t lines = fetch_ ? lines_of_step(turns, turn) : 0;
      if (lines == 0) {
        run<kTiles>(product, NoShadow{});
      } else if (lines == 4) {
        run<kTiles>(product, FetchGroup<1>{fetch_, quarter()});
      } else if (lines == 8) {
        run<kTiles>(product, FetchGroup<2>{fetch_, quarter()});
      } else if (lines == 12) {
        run<kTiles>(product, FetchGroup<3>{fetch_, quarter()});
      } else {
        run<kTiles>(product, FetchGroup<4>{fetch_, quarter()});
      }
    }
  }
  int64_t quarter() const { return halves_ * panel_bytes_ / 4; }

  struct Product {
    TileRun p, q;
    float* d;
  };

  template <int kTiles, class Fetch>
  __attribute__((noinline)) void run(Product x, Fetch fetch) {
    using Sums = TileSums<kTiles, 2>;
    tiles_touch_memory();
    Sums::zero();
    const int64_t finishing = smaller(steps_, finish_.rows_left());
    int64_t step = 0;
    for (; step < finishing; ++step, x.p.data += kTile, x.q.data += kPanelStep) {
      Sums::add(x.p, x.q);
      fetch.step();
      finish_.row();
    }
    for (; step < steps_; ++step, x.p.data += kTile, x.q.data += kPanelStep) {
      Sums::add(x.p, x.q);
      fetch.step();
    }
    Sums::store(x.d, kPanel);
    tiles_touch_memory();
  }

  static constexpr int64_t kUp = kMostTiles * kTileSide * kPanel;  // where the sums of up begin
  alignas(64) float sums_[2][2 * kUp];
  int which_ = 0;
  const GemmJob& job_;
  const Source<bf16> a_;
  const int64_t halves_, steps_, panel_bytes_;
  char* p_;
  const char* next_ = nullptr;   // the group that follows
  const char* fetch_ = nullptr;  // what is still to fetch of it
  Finish finish_;
};

}  // namespace moe::cpu::MOE_ISA
