// A job whose B, an expert's weight, is contiguous along k: the forward products.
//
// B's rows are P as they lie in memory, so a weight is never transposed; A's rows are turned into Q once per job, and
// the result comes out turned. Few rows: tiles of B are loaded from where they are, rows of B being so many streams of
// memory. Many rows: a block of B, small enough for the L1 cache, serves all of them, and while it does the next one
// is copied beside it and the one after that is fetched from memory.
#pragma once

#include "cpu/amx/pack.h"
#include "cpu/amx/turned_epilogue.h"

namespace moe::cpu::MOE_ISA {

class RowWeightGemm {
 public:
  static constexpr int64_t kDirectRows = 2 * kPanel;
  static constexpr int64_t kBlockK = 320;

  static bool takes(const GemmJob& job) {
    const bool a_fits = job.a.k_stride == 1 && !job.a.index_along_k;
    const bool b_fits = job.b.k_stride == 1 && !job.b.index;
    const bool kind_fits =
        job.epilogue == Epilogue::kActivation || (job.epilogue == Epilogue::kStore && job.params->out_col_stride == 1);
    return a_fits && b_fits && kind_fits && job.k > 0;
  }

  static int64_t scratch_bytes(int64_t m, int64_t k) { return Plan(m, k).bytes(); }

  RowWeightGemm(const GemmJob& job, void* scratch)
      : job_(job), plan_(job.m, job.k), a_(job.a), b_(job.b), halves_(job.pair_offset ? 2 : 1) {
    q_ = static_cast<char*>(scratch);
    blocks_[0] = q_ + plan_.q_bytes;
    blocks_[1] = blocks_[0] + plan_.block_bytes;
    c_ = reinterpret_cast<float*>(blocks_[1] + plan_.block_bytes);
  }

  void run() {
    begin_tiles();
    for (int64_t i = 0; i < job_.m; i += kPanel) {
      transpose_rows(a_, i, smaller(kPanel, job_.m - i), job_.k, q_ + i / kPanel * plan_.steps * kPanelStep);
    }
    const int64_t groups = panels_of(job_.n), per_group = halves_ * plan_.k_blocks;
    num_blocks_ = groups * per_group;
    for (int64_t group = 0, block = 0; group < groups; ++group) {
      for (int64_t end = block + per_group; block < end; ++block) multiply(block);
      const TurnedGroup result = {c_,
                                  c_ + kPanel * plan_.ldc,
                                  c_ + 2 * kPanel * plan_.ldc,
                                  plan_.ldc,
                                  job_.row0,
                                  job_.m,
                                  job_.col0 + group * kPanel,
                                  columns_of(group)};
      run_turned_epilogue(job_.epilogue, *job_.params, result);
    }
    end_tiles();
  }

 private:
  struct Plan {
    int64_t steps, direct, k_blocks, block_steps, ldc, q_bytes, block_bytes, c_bytes;

    Plan(int64_t m, int64_t k) {
      steps = steps_of(k);
      direct = m <= kDirectRows;
      k_blocks = direct ? 1 : (k + kBlockK - 1) / kBlockK;
      block_steps = (steps + k_blocks - 1) / k_blocks;
      k_blocks = (steps + block_steps - 1) / block_steps;
      // No power of two, or all lines of c would share one set of the L1 cache.
      ldc = panels_of(m) * kPanel + kTileSide;
      q_bytes = panels_of(m) * steps * kPanelStep;
      block_bytes = block_steps * kPanelStep;
      c_bytes = 3 * kPanel * ldc * static_cast<int64_t>(sizeof(float));
    }
    int64_t bytes() const { return q_bytes + 2 * block_bytes + c_bytes; }
  };

  // A block of B: up to 32 rows of one half, and a run of k.
  struct Block {
    Source<bf16> source;
    int64_t half, row, rows, k0, k;
    bool whole() const { return rows == kPanel && k % kStepK == 0; }
    const char* at() const { return reinterpret_cast<const char*>(source.at(row, k0)); }
  };

  // What comes after the block at hand: fetched from memory, and copied when it is there.
  struct Ahead {
    const char* copy_from = nullptr;
    const char* fetch = nullptr;
    char* copy_to = nullptr;
    int64_t row_bytes = 0, lines = 0, lines_per_step = 0, copied = 0;

    __attribute__((always_inline)) void step() {
      for (int64_t end = copied + lines_per_step; copied < end; copied += 4) {
        if (copied >= lines) return;
        const int64_t offset = copied / kPanel * 64 + copied % kPanel * row_bytes;
#pragma GCC unroll 4
        for (int64_t r = 0; r < 4; ++r) {
          _mm_prefetch(fetch + offset + r * row_bytes, _MM_HINT_T1);
          const __m512i line = _mm512_loadu_si512(copy_from + offset + r * row_bytes);
          _mm512_store_si512(copy_to + (copied + r) * 64, line);
        }
      }
    }
  };

  // Lines of the rows at hand, and then of those that follow them, some steps before they are loaded as tiles.
  struct Fetch {
    static constexpr int64_t kAhead = 16;
    const char* at;
    const char* next;
    int64_t row_bytes, left;

    __attribute__((always_inline)) void step() {
      if (left-- == 0) at = next;
#pragma GCC unroll 8
      for (int64_t r = 0; r < kPanel; ++r) _mm_prefetch(at + r * row_bytes, _MM_HINT_T1);
      at += 64;
    }
  };

  int64_t columns_of(int64_t group) const { return smaller(kPanel, job_.n - group * kPanel); }

  Block block_at(int64_t index) const {
    const int64_t group = index / (halves_ * plan_.k_blocks), half = index / plan_.k_blocks % halves_;
    const int64_t k0 = index % plan_.k_blocks * plan_.block_steps * kStepK;
    Block block = {b_, half, group * kPanel, columns_of(group), k0, smaller(plan_.block_steps * kStepK, job_.k - k0)};
    block.source.data += half * job_.pair_offset;
    return block;
  }

  void multiply(int64_t index) {
    const Block block = block_at(index);
    const int64_t row_bytes = b_.outer_stride * 2;
    if (!plan_.direct) {
      if (!(index == copied_)) copy_rows(block.source, block.row, block.rows, block.k0, block.k, blocks_[index % 2]);
      Ahead ahead = look_ahead(index, steps_of(block.k) * panels_of(job_.m));
      multiply_panels(TileRun::packed(blocks_[index % 2]), block, ahead);
      for (; ahead.copied < ahead.lines;) ahead.step();
      return;
    }
    if (!block.whole()) {
      copy_rows(block.source, block.row, block.rows, block.k0, block.k, blocks_[0]);
      NoShadow none;
      multiply_panels(TileRun::packed(blocks_[0]), block, none);
      return;
    }
    const int64_t steps = steps_of(block.k), ahead = smaller(steps, Fetch::kAhead);
    const char* next = index + 1 < num_blocks_ ? block_at(index + 1).at() : block.at();
    Fetch fetch = {block.at() + ahead * 64, next, row_bytes, steps - ahead};
    multiply_panels(TileRun::rows(block.at(), row_bytes), block, fetch);
  }

  // The first panel does what is to be done in its shadow; where nothing is left, the others find nothing to do.
  template <class Shadow>
  __attribute__((always_inline)) void multiply_panels(const TileRun& p, const Block& block, Shadow& shadow) {
    const int64_t steps = steps_of(block.k);
    float* c = c_ + block.half * kPanel * plan_.ldc;
    for (int64_t i = 0; i < job_.m; i += kPanel) {
      const TileRun q = TileRun::packed(q_ + (i / kPanel * plan_.steps + block.k0 / kStepK) * kPanelStep);
      multiply_tiles(job_.m - i, p, q, steps, c + i, plan_.ldc, block.k0 > 0, shadow);
    }
  }

  Ahead look_ahead(int64_t index, int64_t steps) {
    constexpr int64_t kFetchAhead = 3;
    Ahead ahead;
    if (index + 1 >= num_blocks_) return ahead;
    const Block next = block_at(index + 1);
    if (!next.whole()) return ahead;
    const Block later = block_at(smaller(index + kFetchAhead, num_blocks_ - 1));
    copied_ = index + 1;
    ahead.copy_from = next.at();
    ahead.copy_to = blocks_[(index + 1) % 2];
    ahead.fetch = later.at();
    ahead.row_bytes = b_.outer_stride * 2;
    ahead.lines = steps_of(next.k) * kPanel;
    ahead.lines_per_step = ((ahead.lines + steps - 1) / steps + 3) / 4 * 4;
    return ahead;
  }

  const GemmJob& job_;
  const Plan plan_;
  const Source<bf16> a_, b_;
  const int64_t halves_;
  int64_t num_blocks_ = 0, copied_ = -1;
  char* q_;
  char* blocks_[2];
  float* c_;
};

}  // namespace moe::cpu::MOE_ISA
