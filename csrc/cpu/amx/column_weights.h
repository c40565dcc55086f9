// A job whose B, an expert's weight, is contiguous along its columns: the products of the backward pass, and the
// forward ones of weights that are stored transposed.
//
// A's rows are packed as P, for at most distances their tiles would crowd into few sets of the caches; rows too long to
// stay in the L2 cache are loaded from where they lie. Pairs of B's rows become Q, a block at a time, and while one
// block is multiplied the next one is made from B and the one after that is fetched from memory.
#pragma once

#include "cpu/amx/pack.h"
#include "cpu/amx/straight_epilogue.h"

namespace moe::cpu::MOE_ISA {

class ColumnWeightGemm {
 public:
  static bool takes(const GemmJob& job) {
    const bool a_fits = job.a.k_stride == 1 && !job.a.index_along_k;
    const bool b_fits = job.b.outer_stride == 1 && !job.b.index;
    const bool is_mxfp8 = job.epilogue == Epilogue::kActivation && job.params->preact_is_mxfp8;
    return a_fits && b_fits && !is_mxfp8 && job.k > 0;
  }

  // Of all rows but those of a panel that is not full.
  static bool loads_rows_directly(const GemmJob& job) {
    return !job.a.index && job.k % kStepK == 0 && job.k > kMostPacked;
  }
  static int64_t scratch_bytes(const GemmJob& job) { return Plan(job).bytes(); }

  ColumnWeightGemm(const GemmJob& job, void* scratch)
      : job_(job),
        plan_(job),
        a_(job.a),
        b_(job.b),
        halves_(job.pair_offset ? 2 : 1),
        group_columns_(kBlockColumns / halves_),
        direct_tiles_(loads_rows_directly(job) ? job.m / kPanel * 2 : 0),
        turns_(direct_tiles_ / 2 + turns_of(tiles_of(job.m) - direct_tiles_)) {
    p_ = static_cast<char*>(scratch);
    blocks_[0] = p_ + plan_.p_bytes;
    blocks_[1] = blocks_[0] + plan_.block_bytes;
    c_ = reinterpret_cast<float*>(blocks_[1] + plan_.block_bytes);
  }

  void run() {
    begin_tiles();
    pack_rows(a_, direct_tiles_ * kTileSide, job_.m, job_.k, p_);
    num_blocks_ = (job_.n + group_columns_ - 1) / group_columns_ * plan_.k_blocks;
    for (int64_t index = 0; index < num_blocks_; ++index) {
      multiply(index);
      if (index % plan_.k_blocks == plan_.k_blocks - 1) finish(block_at(index));
    }
    if (job_.params->is_cold) _mm_sfence();
    end_tiles();
  }

 private:
  static constexpr int64_t kMostPacked = 2048;
  static constexpr int64_t kBlockColumns = 256;
  static constexpr int64_t kBlockPanels = kBlockColumns / kPanel;
  static constexpr int64_t kBlockK = 256;
  static constexpr int64_t kLdc = kBlockColumns + kTileSide;

  struct Plan {
    int64_t steps, k_blocks, block_steps, p_bytes, block_bytes, c_bytes;

    explicit Plan(const GemmJob& job) {
      steps = steps_of(job.k);
      k_blocks = (job.k + kBlockK - 1) / kBlockK;
      block_steps = (steps + k_blocks - 1) / k_blocks;
      k_blocks = (steps + block_steps - 1) / block_steps;
      p_bytes = (loads_rows_directly(job) ? 2 : tiles_of(job.m)) * steps * kTile;
      block_bytes = block_steps * kPanelStep * (kBlockColumns / kPanel);
      c_bytes = tiles_of(job.m) * kTileSide * kLdc * static_cast<int64_t>(sizeof(float));
    }
    int64_t bytes() const { return p_bytes + 2 * block_bytes + c_bytes; }
  };

  // Some columns, of gate and of up where there are both, and a run of k.
  struct Block {
    int64_t col0, columns, k0, k;
  };

  // A whole block without halves, kPanels of a pair of rows in each step: few instructions, for they take places in the
  // core that loads to come would have.
  template <int kPanels>
  struct WholeAhead {
    const char* from;
    const char* fetch;
    char* to;
    const int64_t row_bytes, panel_bytes;
    int64_t pairs, pair = 0, panel = 0;

    bool done() const { return pair >= pairs; }
    __attribute__((always_inline)) void step() {
      if (done()) return;
#pragma GCC unroll 8
      for (int64_t i = 0; i < kPanels; ++i) {
        _mm_prefetch(fetch + i * 64, _MM_HINT_T1);
        _mm_prefetch(fetch + row_bytes + i * 64, _MM_HINT_T1);
        char* line = to + i * panel_bytes;
        interleave_lines(_mm512_loadu_si512(from + i * 64), _mm512_loadu_si512(from + row_bytes + i * 64), line,
                         line + panel_bytes / 2);
      }
      from += kPanels * 64;
      fetch += kPanels * 64;
      to += kPanels * panel_bytes;
      panel += kPanels;
      if (panel < kBlockPanels) return;
      panel = 0;
      from += 2 * row_bytes - kBlockPanels * 64;
      fetch += 2 * row_bytes - kBlockPanels * 64;
      to += 64 - kBlockPanels * panel_bytes;
      ++pair;
    }
  };
  template <int kPanels>
  struct TwiceAhead : WholeAhead<kPanels> {
    __attribute__((always_inline)) void step() {
      WholeAhead<kPanels>::step();
      WholeAhead<kPanels>::step();
    }
  };

  // Any other block, a pair of rows of 32 columns after the other.
  struct Ahead {
    const char* from = nullptr;
    const char* fetch = nullptr;
    char* to = nullptr;
    int64_t row_bytes = 0, half_bytes = 0, panels = 0, panels_of_half = 1, panel_bytes = 0, pairs = 0, per_step = 0;
    int64_t pair = 0, panel = 0;

    template <int kPanels>
    WholeAhead<kPanels> whole() const {
      return {from, fetch, to, row_bytes, panel_bytes, pairs};
    }
    bool done() const { return pair >= pairs; }
    __attribute__((always_inline)) void step() {
      for (int64_t i = 0; i < per_step && !done(); ++i) {
        const int64_t half = panel >= panels_of_half ? 1 : 0, column = (panel - half * panels_of_half) * 64;
        const int64_t offset = pair * 2 * row_bytes + half * half_bytes + column;
        _mm_prefetch(fetch + offset, _MM_HINT_T1);
        _mm_prefetch(fetch + offset + row_bytes, _MM_HINT_T1);
        char* line = to + panel * panel_bytes + pair * 64;
        interleave_lines(_mm512_loadu_si512(from + offset), _mm512_loadu_si512(from + offset + row_bytes), line,
                         line + panel_bytes / 2);
        if (++panel == panels) {
          panel = 0;
          ++pair;
        }
      }
    }
  };

  Block block_at(int64_t index) const {
    const int64_t col0 = index / plan_.k_blocks * group_columns_;
    const int64_t k0 = index % plan_.k_blocks * plan_.block_steps * kStepK;
    return {col0, smaller(group_columns_, job_.n - col0), k0, smaller(plan_.block_steps * kStepK, job_.k - k0)};
  }
  bool is_whole(const Block& block) const { return block.columns % kPanel == 0 && block.k % kStepK == 0; }
  const char* address(const Block& block) const { return reinterpret_cast<const char*>(b_.at(block.col0, block.k0)); }

  // Rows where they lie share few sets of the L1 cache: a tile loaded twice would have to come from the L2 cache again.
  int64_t at_once(int64_t tile) const { return tile < direct_tiles_ ? 2 : tiles_at_once(tiles_of(job_.m) - tile); }
  TileRun p_run(int64_t tile, int64_t k0) const {
    if (tile < direct_tiles_) return TileRun::rows(a_.at(tile * kTileSide, k0), a_.outer_stride * 2);
    return TileRun::tiles(p_ + ((tile - direct_tiles_) * plan_.steps + k0 / kStepK) * kTile, plan_.steps);
  }

  // Panels of a block stand in the order of all gates, all ups.
  void make_block(const Block& block, char* to) const {
    const bf16* rows[kBlockK];
    for (int64_t half = 0, panel = 0; half < halves_; ++half) {
      for (int64_t kk = 0; kk < block.k; ++kk) rows[kk] = b_.at(block.col0, block.k0 + kk) + half * job_.pair_offset;
      for (int64_t j = 0; j < block.columns; j += kPanel, ++panel) {
        interleave_columns(rows, block.k, j, smaller(kPanel, block.columns - j),
                           to + panel * plan_.block_steps * kPanelStep, plan_.block_steps);
      }
    }
  }

  void multiply(int64_t index) {
    const Block block = block_at(index);
    const int64_t steps = steps_of(block.k), panels = panels_of(block.columns);
    char* q = blocks_[index % 2];
    if (index != made_) make_block(block, q);
    const Ahead ahead = look_ahead(index, steps * panels * halves_ * turns_);
    if (halves_ > 1 || ahead.panels != kBlockPanels) {
      multiply(block, q, ahead);
    } else if (ahead.per_step <= 1) {
      multiply(block, q, ahead.whole<1>());
    } else if (ahead.per_step <= 2) {
      multiply(block, q, ahead.whole<2>());
    } else if (ahead.per_step <= 4) {
      multiply(block, q, ahead.whole<4>());
    } else if (ahead.per_step <= 8) {
      multiply(block, q, ahead.whole<8>());
    } else {
      multiply(block, q, TwiceAhead<8>{ahead.whole<8>()});
    }
  }

  template <class Shadow>
  void multiply(const Block& block, const char* block_q, Shadow ahead) {
    const int64_t steps = steps_of(block.k), panels = panels_of(block.columns);
    const int64_t panel_bytes = plan_.block_steps * kPanelStep;
    for (int64_t tile = 0; tile < tiles_of(job_.m);) {
      const int64_t count = at_once(tile);
      const TileRun p = p_run(tile, block.k0);
      with_tiles(count, [&]<int kTiles>() {
        float* rows = c_ + tile * kTileSide * kLdc;
        for (int64_t panel = 0; panel < halves_ * panels; ++panel) {
          const TileRun q = TileRun::tiles(block_q + panel * panel_bytes, plan_.block_steps);
          float* c = rows + (panel < panels ? panel * kPanel : group_columns_ + (panel - panels) * kPanel);
          multiply_tiles<kTiles, 2>(p, q, steps, c, kLdc, block.k0 > 0, ahead);
        }
      });
      tile += count;
    }
    while (!ahead.done()) ahead.step();
  }

  Ahead look_ahead(int64_t index, int64_t steps) {
    Ahead ahead;
    if (index + 1 >= num_blocks_) return ahead;
    const Block next = block_at(index + 1), later = block_at(smaller(index + 2, num_blocks_ - 1));
    if (!is_whole(next)) return ahead;
    made_ = index + 1;
    ahead.from = address(next);
    ahead.fetch = address(later);
    ahead.to = blocks_[(index + 1) % 2];
    ahead.row_bytes = b_.k_stride * 2;
    ahead.half_bytes = job_.pair_offset * 2;
    ahead.panels_of_half = next.columns / kPanel;
    ahead.panels = ahead.panels_of_half * halves_;
    ahead.panel_bytes = plan_.block_steps * kPanelStep;
    ahead.pairs = next.k / 2;
    ahead.per_step = (ahead.pairs * ahead.panels + steps - 1) / steps;
    return ahead;
  }

  void finish(const Block& block) const {
    const int64_t width = halves_ == 2 || job_.epilogue != Epilogue::kStore ? kPanel : block.columns;
    for (int64_t j = 0; j < block.columns; j += width) {
      EpilogueBlock<float> result;
      result.gate = c_ + j;
      result.up = result.gate + group_columns_;
      result.ld = kLdc;
      result.row0 = job_.row0;
      result.rows = job_.m;
      result.col0 = job_.col0 + block.col0 + j;
      result.columns = smaller(width, block.columns - j);
      EpilogueOf<bf16, float>::run(job_.epilogue, *job_.params, result, kPanel);
    }
  }

  const GemmJob& job_;
  const Plan plan_;
  const Source<bf16> a_, b_;
  const int64_t halves_, group_columns_, direct_tiles_, turns_;
  int64_t num_blocks_ = 0, made_ = -1;
  char* p_;
  char* blocks_[2];
  float* c_;
};

}  // namespace moe::cpu::MOE_ISA
