// The loops around SplitEngine. A panel of weights is split while the panel before it is multiplied and the one after
// it is fetched from memory: the vector units work in the shadow of the tiles, and with few rows, where the weights are
// all that counts, they are read about as fast as memory delivers.
#pragma once

#include "cpu/amx/split_nonfinite.h"
#include "cpu/amx/split_stream.h"

namespace moe::cpu::MOE_ISA {

// Splits 32 rows of B, a run of k each, a row and a step at a time.
template <class T, int kParts>
class PanelAhead {
 public:
  static constexpr int64_t kRows = 32;

  PanelAhead() = default;
  // products: how often step() will be called. Every step of k must be whole.
  PanelAhead(const T* from, const T* fetch, int64_t row_stride, int64_t k, SplitNumber<kParts>* target, int64_t ld,
             int64_t products)
      : from_(from),
        fetch_(fetch),
        target_(target),
        row_stride_(row_stride),
        ld_(ld),
        k_(k),
        left_(kRows * k / kSplitStep),
        per_product_((left_ + products - 1) / products) {}

  __attribute__((always_inline)) void step() { run(per_product_ < left_ ? per_product_ : left_); }
  void finish() { run(left_); }

 private:
  __attribute__((always_inline)) void run(int64_t count) {
    left_ -= count;
    for (; count > 0; --count) {
      _mm_prefetch(fetch_ + at_, _MM_HINT_T1);
      if constexpr (sizeof(T) == 4) _mm_prefetch(fetch_ + at_ + 16, _MM_HINT_T1);
      split_row<T, kParts>(from_ + at_, kSplitStep, target_ + at_);
      at_ += kSplitStep;
      if (at_ == k_) {
        at_ = 0;
        from_ += row_stride_;
        fetch_ += row_stride_;
        target_ += ld_;
      }
    }
  }

  const T* from_ = nullptr;
  const T* fetch_ = nullptr;
  SplitNumber<kParts>* target_ = nullptr;
  int64_t row_stride_ = 0, ld_ = 0, k_ = 0, left_ = 0, per_product_ = 0, at_ = 0;
};

template <class T, int kParts>
class SplitDriver : public GemmDriver<T, SplitEngine<kParts>> {
  using Engine = SplitEngine<kParts>;
  using Base = GemmDriver<T, Engine>;
  using Packed = typename Engine::Packed;
  using Base::job_, Base::plan_, Base::b_, Base::halves_, Base::packed_b_, Base::c_, Base::left;

 public:
  using Base::Base;

  void run() {
    Engine::begin();
    Base::pack_a();
    if (!Base::swapped_ || b_.index || job_.k == 0 || job_.operands_swapped) {
      multiply_blocks();
    } else if (job_.m <= Engine::kQ) {
      stream();
    } else {
      multiply_panels();
    }
    Engine::end();
  }

 private:
  void finish(int64_t n0, int64_t columns) {
    const int64_t line = Base::swapped_ ? 1 : Base::c_stride(), column = Base::swapped_ ? Base::c_stride() : 1;
    for (int64_t half = 0; half < halves_; ++half) {
      for (int64_t j = 0; j < columns; j += Engine::kGroup) {
        const int64_t width = left(columns, j, Engine::kGroup);
        const SumsOfParts sums = {c_ + Base::c_column(half, j) * column, line, column, job_.m, width, job_.k};
        if (!sums.are_finite()) sums.sum_again(Base::a_, b_, n0 + j, half * job_.pair_offset);
      }
    }
    Base::finish(n0, columns);
  }

  void multiply_blocks() {
    for (int64_t n0 = 0; n0 < job_.n; n0 += step()) {
      const int64_t columns = left(job_.n, n0, step());
      Base::for_k_blocks([&](int64_t k0, int64_t k) { Base::multiply(n0, columns, k0, k); });
      finish(n0, columns);
    }
  }

  void stream() {
    using Ahead = StepsAhead<T, kParts>;
    Ahead ahead(b_, job_, reinterpret_cast<char*>(packed_b_));
    const int64_t steps = (job_.k + kSplitStep - 1) / kSplitStep;
    int64_t done = 0;
    for (int64_t n0 = 0; n0 < job_.n; n0 += step()) {
      const int64_t columns = left(job_.n, n0, step());
      for (int64_t j = 0; j < columns; j += Engine::kP) {
        for (int64_t half = 0; half < halves_; ++half, done += steps) {
          Engine::stream(ahead, done, left(columns, j, Engine::kP), Base::a_panel(0), Engine::q_width(job_.m), steps,
                         c_ + Base::c_column(half, j) * Base::c_stride(), Base::c_stride());
        }
      }
      finish(n0, columns);
    }
  }

  void multiply_panels() {
    for (Panel panel = {}; panel.n0 < job_.n;) {
      const Panel next = after(panel);
      multiply_panel(panel, next);
      if (next.n0 != panel.n0) finish(panel.n0, columns_of_block(panel));
      panel = next;
    }
  }

  // Column j of a half of the super block from n0 on, and a block of k.
  struct Panel {
    int64_t n0 = 0, k0 = 0, half = 0, j = 0;
  };
  int64_t step() const { return plan_.super_columns / halves_; }
  int64_t columns_of_block(const Panel& p) const { return left(job_.n, p.n0, step()); }
  int64_t columns_of(const Panel& p) const { return left(columns_of_block(p), p.j, Engine::kP); }
  int64_t k_of(const Panel& p) const { return left(job_.k, p.k0, plan_.k_block); }
  const T* address(const Panel& p) const { return b_.at(p.n0 + p.j, p.k0) + p.half * job_.pair_offset; }
  bool exists(const Panel& p) const { return p.n0 < job_.n; }
  bool is_whole(const Panel& p) const { return columns_of(p) == Engine::kP && k_of(p) % kSplitStep == 0; }

  // Along k first where the packed rows stay in the L2 cache, or else a block of k for all columns of the super block.
  Panel after(Panel p) const {
    if (job_.m * job_.k * static_cast<int64_t>(sizeof(Packed)) <= kRowsInCache) {
      p.k0 += plan_.k_block;
      if (p.k0 < job_.k) return p;
      p.k0 = 0;
      if (++p.half < halves_) return p;
      p.half = 0;
      p.j += Engine::kP;
      if (p.j < columns_of_block(p)) return p;
      p.j = 0;
      p.n0 += step();
      return p;
    }
    p.j += Engine::kP;
    if (p.j < columns_of_block(p)) return p;
    p.j = 0;
    if (++p.half < halves_) return p;
    p.half = 0;
    p.k0 += plan_.k_block;
    if (p.k0 < job_.k) return p;
    p.k0 = 0;
    p.n0 += step();
    return p;
  }

  void multiply_panel(const Panel& panel, const Panel& next) {
    const int64_t k = k_of(panel), padded_k = round_up(k, kSplitStep), columns = columns_of(panel);
    const int64_t ld = panel_stride<Engine>(plan_.k_block);
    Packed* packed = packed_b_ + buffer_ * Engine::kP * ld;
    buffer_ ^= 1;
    if (!made_) {
      Source<T> source = b_;
      source.data += panel.half * job_.pair_offset;
      Engine::template pack_p<T>(source, panel.n0 + panel.j, columns, panel.k0, k, padded_k, packed, ld, false);
    }
    PanelAhead<T, kParts> ahead;
    made_ = exists(next) && is_whole(next);
    if (made_) {
      const Panel later = after(next);
      const int64_t products =
          Engine::kProductsOfStep * (padded_k / kSplitStep) * ((job_.m + Engine::kQ - 1) / Engine::kQ);
      ahead = {address(next), address(exists(later) ? later : next), b_.outer_stride,
               k_of(next),    packed_b_ + buffer_ * Engine::kP * ld, ld,
               products};
    }
    float* c = c_ + Base::c_column(panel.half, panel.j) * Base::c_stride();
    for (int64_t i = 0; i < job_.m; i += Engine::kQ) {
      const int64_t width = Engine::q_width(left(job_.m, i, Engine::kQ));
      Engine::template micro_over<true>(ahead, packed, ld, columns, Base::a_panel(i) + panel.k0 * width, width,
                                        padded_k, c + i, Base::c_stride(), panel.k0 > 0);
    }
    ahead.finish();
  }

  static constexpr int64_t kRowsInCache = int64_t{1} << 20;

  bool made_ = false;
  int64_t buffer_ = 0;
};

template <class T, int kParts>
static void run_split_gemm(const GemmJob& job, void* scratch) {
  SplitDriver<T, kParts>(job, scratch).run();
}

template <class T, int kParts>
static constexpr GemmKernel split_gemm_kernel() {
  GemmKernel kernel = gemm_kernel<T, SplitEngine<kParts>>();
  kernel.run = run_split_gemm<T, kParts>;
  return kernel;
}

}  // namespace moe::cpu::MOE_ISA
