// The loops around a micro-kernel: what a GemmJob does, the same for every ISA and dtype.
//
// An Engine multiplies a packed panel P (few rows, broadcast) by a packed panel Q (vectors). Which operand becomes
// which side follows the memory layout of B (usually an expert's weight), so that the large operand is only ever
// copied row by row and never transposed:
//   B contiguous along k (weight [N,C] in the forward pass): P = columns of B, Q = rows of A, the result is C^T.
//   B contiguous along its columns (input and weight gradients): P = rows of A, Q = columns of B, the result is C.
//
// A is packed once per job. B is packed a super block of columns and kKBlock of k at a time; a panel of the inner
// operand then stays in the L1 cache while the other one streams from L2. Blocks of k follow k alone, which keeps the
// order of every sum fixed.
#pragma once

#include "cpu/vectorized/ahead.h"
#include "cpu/vectorized/epilogue.h"
#include "cpu/vectorized/pack.h"

namespace moe::cpu::MOE_ISA {

static constexpr int64_t round_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// Row-major panels keep a stride that is no power of two, or all their rows would share one set of the L1 cache.
template <class Engine>
static constexpr int64_t panel_stride(int64_t padded_k) {
  return padded_k + Engine::kPad;
}

template <class Engine>
struct GemmPlan {
  using Packed = typename Engine::Packed;
  using Acc = typename Engine::Acc;

  int64_t padded_m, padded_k, k_block, super_columns;
  bool few_rows;
  int64_t a_bytes, b_bytes, c_bytes, block_bytes;

  GemmPlan(int64_t m, int64_t k) {
    padded_m = round_up(m > 0 ? m : 1, Engine::kP > Engine::kQ ? Engine::kP : Engine::kQ);
    padded_k = round_up(k, Engine::kStep);
    // For few rows B is read once and from memory: longer runs of its rows, in as much cache.
    few_rows = m <= 64;
    const int64_t block = few_rows ? Engine::kKBlockOfFewRows : Engine::kKBlock;
    k_block = padded_k < block ? padded_k : block;
    super_columns = few_rows ? 4 * Engine::kSuper : Engine::kSuper;
    a_bytes = round_up((padded_m + Engine::kP) * panel_stride<Engine>(padded_k) * sizeof(Packed), 64);
    b_bytes = round_up((super_columns + Engine::kP) * panel_stride<Engine>(k_block) * sizeof(Packed), 64);
    c_bytes = round_up((padded_m + Engine::kP) * (super_columns + Engine::kP) * sizeof(Acc), 64);
    block_bytes = round_up(padded_m * 2 * Engine::kGroup * sizeof(Acc), 64);
  }
  int64_t bytes() const { return a_bytes + b_bytes + c_bytes + block_bytes; }
};

template <class Engine>
static int64_t gemm_scratch_bytes(const GemmJob& job) {
  return GemmPlan<Engine>(job.m, job.k).bytes();
}

template <class Engine>
static int64_t gemm_row_chunk(const GemmJob& job) {
  // A packed block of rows stays within this many elements, unless k alone is longer.
  constexpr int64_t kPackedElements = int64_t{4} << 20, kRowStep = 48;
  if (job.k == 0) return Engine::kMChunk;
  const int64_t rows = kPackedElements / job.k / kRowStep * kRowStep;
  return rows < kRowStep ? kRowStep : rows < Engine::kMChunk ? rows : Engine::kMChunk;
}

// How much of k a micro-kernel has to multiply: for some engines it need not be all that packing fills up.
template <class Engine>
static constexpr int64_t multiplied_k(int64_t k) {
  if constexpr (requires { Engine::kStepOfProducts; }) return round_up(k, Engine::kStepOfProducts);
  return round_up(k, Engine::kStep);
}

template <class T, class Engine>
class GemmDriver {
  using Packed = typename Engine::Packed;
  using Acc = typename Engine::Acc;
  static constexpr int64_t kSize = sizeof(T);
  static constexpr bool kFetches = AheadOf<Engine>::kFetches;

 public:
  GemmDriver(const GemmJob& job, void* scratch)
      : job_(job),
        plan_(job.m, job.k),
        a_(job.a),
        b_(job.b),
        swapped_(b_.k_contiguous()),
        a_k_major_(!swapped_ && Engine::kKMajorP && !a_.k_contiguous()),
        halves_(job.pair_offset ? 2 : 1) {
    char* at = static_cast<char*>(scratch);
    packed_a_ = reinterpret_cast<Packed*>(at);
    packed_b_ = reinterpret_cast<Packed*>(at += plan_.a_bytes);
    c_ = reinterpret_cast<Acc*>(at += plan_.b_bytes);
    block_ = reinterpret_cast<Acc*>(at += plan_.c_bytes);
  }

  void run() {
    Engine::begin();
    pack_a();
    const int64_t step = plan_.super_columns / halves_;
    for (int64_t n0 = 0; n0 < job_.n; n0 += step) {
      const int64_t columns = job_.n - n0 < step ? job_.n - n0 : step;
      if (swapped_ && plan_.few_rows) {
        // Panel by panel along all of k: the rows of B are read from memory in one go.
        for (int64_t j = 0; j < columns; j += Engine::kP) {
          for (int64_t half = 0; half < halves_; ++half) multiply_panel(n0, j, left(columns, j, Engine::kP), half);
        }
      } else {
        for_k_blocks([&](int64_t k0, int64_t k) { multiply(n0, columns, k0, k); });
      }
      finish(n0, columns);
    }
    Engine::end();
  }

 protected:
  int64_t groups(int64_t columns) const { return (columns + Engine::kGroup - 1) / Engine::kGroup; }
  int64_t c_stride() const { return swapped_ ? plan_.padded_m : plan_.super_columns; }
  static int64_t left(int64_t size, int64_t at, int64_t step) { return size - at < step ? size - at : step; }

  // At least one, though it may be empty.
  template <class Body>
  void for_k_blocks(const Body& body) const {
    int64_t k0 = 0;
    do {
      body(k0, left(job_.k, k0, plan_.k_block));
      k0 += plan_.k_block;
    } while (k0 < job_.k);
  }

  void pack_a() {
    for (int64_t i = 0; i < job_.m; i += swapped_ ? Engine::kQ : Engine::kP) {
      if (swapped_) {
        const int64_t rows = left(job_.m, i, Engine::kQ);
        Engine::template pack_q<T>(a_, i, rows, 0, job_.k, plan_.padded_k, Engine::q_width(rows), a_panel(i));
      } else {
        Engine::template pack_p<T>(a_, i, left(job_.m, i, Engine::kP), 0, job_.k, plan_.padded_k, a_panel(i),
                                   panel_stride<Engine>(plan_.padded_k), a_k_major_);
      }
    }
  }
  Packed* a_panel(int64_t row) const {
    return packed_a_ + row * (swapped_ ? plan_.padded_k : panel_stride<Engine>(plan_.padded_k));
  }

  // A piece of B, to its end or as much as is packed at once.
  struct Piece {
    int64_t column, half, k0;
  };

  // Has `next` fetched while what comes before it is multiplied. Past the last column that is the next job's first.
  void fetch_meanwhile(const Piece& next) {
    if constexpr (kFetches) {
      ahead_ = {};
      if (b_.index || (!swapped_ && !b_.outer_contiguous())) return;
      const bool is_here = next.column < job_.n;
      const T* data =
          is_here ? b_.at(next.column, next.k0) + next.half * job_.pair_offset : static_cast<const T*>(job_.next_b);
      if (!data) return;
      const int64_t k = left(job_.k, next.k0, plan_.k_block);
      if (swapped_) {
        ahead_ = {data, b_.outer_stride * kSize, Engine::kP, k * kSize};
      } else {
        const int64_t step = plan_.super_columns / halves_;
        ahead_ = {data, b_.k_stride * kSize, k, (is_here ? left(job_.n, next.column, step) : step) * kSize};
      }
    }
  }

  // One super block times one block of k, into c_.
  void multiply(int64_t n0, int64_t columns, int64_t k0, int64_t k) {
    for (int64_t half = 0; half < halves_; ++half) {
      Source<T> source = b_;
      source.data += half * job_.pair_offset;
      const Piece next = half + 1 < halves_            ? Piece{n0, half + 1, k0}
                         : k0 + plan_.k_block < job_.k ? Piece{n0, 0, k0 + plan_.k_block}
                                                       : Piece{n0 + plan_.super_columns / halves_, 0, 0};
      if (swapped_) {
        multiply_swapped(source, n0, columns, half, 0, k0, k, next);
      } else {
        fetch_meanwhile(next);
        multiply_natural(source, half, n0, columns, k0, k);
      }
    }
  }

  // Where column j of a half of the super block stands in c_.
  int64_t c_column(int64_t half, int64_t j) const {
    return (j / Engine::kGroup * halves_ + half) * Engine::kGroup + j % Engine::kGroup;
  }

  // Where an engine's order of products goes by A and B, by which of them was which at first.
  template <bool kPIsB, class... Arguments>
  void micro(Arguments... arguments) {
    if constexpr (requires { Engine::kOrdersByOperand; }) {
      if (job_.operands_swapped) return Engine::template micro<!kPIsB>(arguments...);
    }
    if constexpr (requires { Engine::kFetchesAhead; }) {
      Engine::template micro<kPIsB>(arguments..., ahead_);
    } else {
      Engine::template micro<kPIsB>(arguments...);
    }
  }

  void multiply_panel(int64_t n0, int64_t j, int64_t columns, int64_t half) {
    Source<T> source = b_;
    source.data += half * job_.pair_offset;
    for_k_blocks([&](int64_t k0, int64_t k) {
      const Piece next = k0 + plan_.k_block < job_.k ? Piece{n0 + j, half, k0 + plan_.k_block}
                         : half + 1 < halves_        ? Piece{n0 + j, half + 1, 0}
                                                     : Piece{n0 + j + columns, 0, 0};
      multiply_swapped(source, n0, j + columns, half, j, k0, k, next);
    });
  }

  // Columns [first, columns) of the super block. `next` comes after them.
  void multiply_swapped(const Source<T>& source, int64_t n0, int64_t columns, int64_t half, int64_t first, int64_t k0,
                        int64_t k, const Piece& next) {
    const int64_t padded_k = round_up(k, Engine::kStep), ld = panel_stride<Engine>(padded_k);
    for (int64_t j = first; j < columns; j += Engine::kP) {
      const int64_t panel_columns = left(columns, j, Engine::kP);
      Engine::template pack_p<T>(source, n0 + j, panel_columns, k0, k, padded_k, packed_b_, ld, false);
      fetch_meanwhile(j + Engine::kP < columns ? Piece{n0 + j + Engine::kP, half, k0} : next);
      Acc* c = c_ + c_column(half, j) * c_stride();
      for (int64_t i = 0; i < job_.m; i += Engine::kQ) {
        const int64_t q_width = Engine::q_width(left(job_.m, i, Engine::kQ));
        micro<true>(false, packed_b_, ld, panel_columns, a_panel(i) + k0 * q_width, q_width, multiplied_k<Engine>(k),
                    c + i, c_stride(), k0 > 0);
      }
    }
  }

  void multiply_natural(const Source<T>& source, int64_t half, int64_t n0, int64_t columns, int64_t k0, int64_t k) {
    const int64_t padded_k = round_up(k, Engine::kStep), panel_size = Engine::kQ * padded_k;
    const int64_t last_width = Engine::q_width(columns - columns / Engine::kQ * Engine::kQ);
    if (source.outer_contiguous()) {
      Engine::pack_q_panels(source, n0, columns, k0, k, padded_k, last_width, packed_b_, panel_size);
    } else {
      for (int64_t j = 0; j < columns; j += Engine::kQ) {
        const int64_t panel_columns = left(columns, j, Engine::kQ);
        Engine::template pack_q<T>(source, n0 + j, panel_columns, k0, k, padded_k, Engine::q_width(panel_columns),
                                   packed_b_ + j / Engine::kQ * panel_size);
      }
    }
    const int64_t ld = panel_stride<Engine>(plan_.padded_k);
    for (int64_t j = 0; j < columns; j += Engine::kQ) {
      const int64_t q_width = Engine::q_width(left(columns, j, Engine::kQ));
      const Packed* panel = packed_b_ + j / Engine::kQ * panel_size;
      Acc* c = c_ + c_column(half, j);
      for (int64_t i = 0; i < job_.m; i += Engine::kP) {
        micro<false>(a_k_major_, a_panel(i) + k0 * (a_k_major_ ? Engine::kP : 1), ld, left(job_.m, i, Engine::kP),
                     panel, q_width, multiplied_k<Engine>(k), c + i * c_stride(), c_stride(), k0 > 0);
      }
    }
  }

  // All of k is in c_: hand each group of columns, row-major, to the epilogue.
  void finish(int64_t n0, int64_t columns) {
    if (!swapped_ && job_.epilogue != Epilogue::kActivation && job_.epilogue != Epilogue::kActivationBackward) {
      // Groups lie side by side and nothing is done per group: long runs of each row.
      const EpilogueBlock<Acc> block = {c_, nullptr, c_stride(), job_.row0, job_.m, job_.col0 + n0, columns};
      EpilogueOf<T, Acc>::run(job_.epilogue, *job_.params, block, Engine::kGroup);
      return;
    }
    // What is encoded stays where the sums were, until all groups have it.
    const bool encodes = job_.epilogue == Epilogue::kActivation && job_.params->preact && job_.params->preact_is_mxfp8;
    const int64_t z_column = swapped_ ? c_stride() : 1, z_row = swapped_ ? Engine::kGroup : c_stride();
    for (int64_t group = 0; group < groups(columns); ++group) {
      EpilogueBlock<Acc> block;
      block.row0 = job_.row0;
      block.rows = job_.m;
      block.col0 = job_.col0 + n0 + group * Engine::kGroup;
      block.columns = left(columns, group * Engine::kGroup, Engine::kGroup);
      const int64_t c_column = group * halves_ * Engine::kGroup;
      if (swapped_) {
        const int64_t ld = 2 * Engine::kGroup;
        for (int64_t half = 0; half < halves_; ++half) {
          Engine::transpose(c_ + (c_column + half * Engine::kGroup) * c_stride(), c_stride(), block.columns, job_.m,
                            block_ + half * Engine::kGroup, ld);
        }
        block.gate = block_;
        block.ld = ld;
      } else {
        block.gate = c_ + c_column;
        block.ld = c_stride();
      }
      block.up = block.gate + Engine::kGroup;
      for (int64_t half = 0; encodes && half < halves_; ++half) {
        block.z[half] = c_ + (c_column + half * Engine::kGroup) * z_column;
      }
      block.z_ld = z_row;
      EpilogueOf<T, Acc>::run(job_.epilogue, *job_.params, block, Engine::kGroup);
    }
    static_assert(Engine::kSuper / 2 % kMxfp8Columns == 0);
    if (encodes) {
      const int64_t part = Engine::kGroup * z_column;
      encode_preact<Engine::kGroup>(*job_.params, KeptPreact<Acc>{c_, halves_ * part, part, z_row}, halves_, job_.row0,
                                    job_.m, job_.col0 + n0, columns);
    }
  }

  const GemmJob& job_;
  const GemmPlan<Engine> plan_;
  const Source<T> a_, b_;
  bool swapped_, a_k_major_;
  const int64_t halves_;
  Packed* packed_a_;
  Packed* packed_b_;
  Acc* c_;
  Acc* block_;
  typename AheadOf<Engine>::type ahead_;
};

template <class T, class Engine>
static void run_gemm(const GemmJob& job, void* scratch) {
  GemmDriver<T, Engine>(job, scratch).run();
}

template <class T, class Engine>
static constexpr GemmKernel gemm_kernel() {
  return {run_gemm<T, Engine>, gemm_scratch_bytes<Engine>, gemm_row_chunk<Engine>, Engine::kGroup};
}

}  // namespace moe::cpu::MOE_ISA
