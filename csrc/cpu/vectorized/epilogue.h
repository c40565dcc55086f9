// What happens to a block of a product before it is stored: see EpilogueParams in cpu/gemm.h.
#pragma once

#include "cpu/gemm.h"
#include "cpu/vectorized/activation.h"
#include "cpu/vectorized/mxfp8.h"
#include "cpu/vectorized/pack.h"
#include "cpu/vectorized/stream.h"

namespace moe::cpu::MOE_ISA {

template <class A>
struct EpilogueBlock {
  const A* gate;  // [rows, columns], ld apart; the only half where columns stand alone
  const A* up;
  int64_t ld;
  int64_t row0, rows, col0, columns;
  // Where kActivation leaves z for encode_preact(), gate and up; null: it does not. May be where gate and up are.
  A* z[2] = {};
  int64_t z_ld = 0;
};

// The widest block of columns that any engine hands over: one group, or all of a super block to be stored as it is.
static constexpr int64_t kMaxColumns = 64;
static constexpr int64_t kMaxStoredColumns = 1024;

// A run of a stored row; step is 2 for interleaved gate and up.
template <class T>
static inline void load_run(const T* source, int64_t step, int64_t count, acc_t<T>* __restrict target) {
  if (step == 1) {
    for_each_in_blocks(count, [&](int64_t j) { target[j] = to_acc(source[j]); });
  } else {
    for (int64_t j = 0; j < count; ++j) target[j] = to_acc(source[j * step]);
  }
}

// Rounds a run to T and stores it. An instruction set may have its own.
template <class T>
struct Rounded {
  using A = acc_t<T>;
  static void store(const A* __restrict source, T* __restrict target, int64_t count) {
    for_each_in_blocks(count, [&](int64_t j) { target[j] = from_acc<T>(source[j]); });
  }
  // Past the caches, where that can be; finish_streams() must follow.
  static void stream(const A* source, T* target, int64_t count) {
    if constexpr (sizeof(T) == sizeof(float)) {
      stream_run(source, target, count);
    } else {
      store(source, target, count);
    }
  }
};

template <class T>
static inline void store_run(const acc_t<T>* __restrict source, T* __restrict target, int64_t step, int64_t count) {
  if (step == 1) {
    Rounded<T>::store(source, target, count);
  } else {
    for (int64_t j = 0; j < count; ++j) target[j * step] = from_acc<T>(source[j]);
  }
}

template <class T, class A>
static void store_block(const EpilogueParams& p, const EpilogueBlock<A>& block) {
  A bias[kMaxStoredColumns], sum[kMaxStoredColumns];
  if (p.bias) load_run(static_cast<const T*>(p.bias) + block.col0 * p.bias_stride, p.bias_stride, block.columns, bias);
  T* out = static_cast<T*>(p.out) + block.col0 * p.out_col_stride;
  // Parts of lines are no gain: each would be written to memory by itself.
  const bool streams = p.is_cold && p.out_col_stride == 1 && block.columns * sizeof(T) % 64 == 0;
  for (int64_t i = 0; i < block.rows; ++i) {
    const A* c = block.gate + i * block.ld;
    if (p.bias) {
      for (int64_t j = 0; j < block.columns; ++j) sum[j] = c[j] + bias[j];
      c = sum;
    }
    T* row = out + (block.row0 + i) * p.out_row_stride;
    if (streams) {
      Rounded<T>::stream(c, row, block.columns);
    } else {
      store_run(c, row, p.out_col_stride, block.columns);
    }
  }
  if (streams) finish_streams();
}

template <bool kAdds, class A>
static void sums_block(const EpilogueParams& p, const EpilogueBlock<A>& block) {
  for (int64_t i = 0; i < block.rows; ++i) {
    const A* __restrict c = block.gate + i * block.ld;
    A* __restrict out = static_cast<A*>(p.out) + (block.row0 + i) * p.out_row_stride + block.col0 * p.out_col_stride;
    if (p.out_col_stride == 1) {
      for_each_in_blocks(block.columns, [&](int64_t j) { out[j] = kAdds ? out[j] + c[j] : c[j]; });
    } else {
      for (int64_t j = 0; j < block.columns; ++j) {
        A* to = out + j * p.out_col_stride;
        *to = kAdds ? *to + c[j] : c[j];
      }
    }
  }
}

// Activations of up to kMaxColumns values in arrays of that size. An instruction set may have its own for data that is
// rounded to T.
template <Activation kKind, class T>
struct Activate {
  using A = acc_t<T>;
  static void forward(const A* gate, const A* up, int64_t count, A alpha, A limit, A* act) {
    activate_as<kKind>(gate, up, count, alpha, limit, act);
  }
  static void backward(const A* gate, const A* up, const A* grad, int64_t count, A alpha, A limit, A* act, A* grad_gate,
                       A* grad_up) {
    activate_backward_as<kKind>(gate, up, grad, count, alpha, limit, act, grad_gate, grad_up);
  }
};

template <Activation kKind, class T, class A>
static void activation_block(const EpilogueParams& p, const EpilogueBlock<A>& block) {
  constexpr bool kGated = is_gated(kKind);
  const int64_t n = block.columns, gate_at = block.col0 * p.gate_step, up_at = p.up_offset + gate_at;
  A bias[2][kMaxColumns], z[2][kMaxColumns], act[kMaxColumns];
  if (p.bias) {
    const T* source = static_cast<const T*>(p.bias);
    load_run(source + gate_at * p.bias_stride, p.gate_step * p.bias_stride, n, bias[0]);
    if (kGated) load_run(source + up_at * p.bias_stride, p.gate_step * p.bias_stride, n, bias[1]);
  }
  for (int64_t i = 0; i < block.rows; ++i) {
    const int64_t row = block.row0 + i;
    const A scale = p.weights_on_input ? static_cast<const A*>(p.slot_weights)[p.row_to_slot[row]] : A(1);
    for (int half = 0; half < (kGated ? 2 : 1); ++half) {
      const A* __restrict c = (half ? block.up : block.gate) + i * block.ld;
      for (int64_t j = 0; j < n; ++j) z[half][j] = c[j] * scale;
      if (p.bias) {
        for (int64_t j = 0; j < n; ++j) z[half][j] += bias[half][j];
      }
    }
    if (block.z[0]) {
      for (int half = 0; half < (kGated ? 2 : 1); ++half) {
        for (int64_t j = 0; j < n; ++j) block.z[half][i * block.z_ld + j] = z[half][j];
      }
    } else if (p.preact) {
      T* target = static_cast<T*>(p.preact) + row * p.preact_stride;
      store_run(z[0], target + gate_at, p.gate_step, n);
      if (kGated) store_run(z[1], target + up_at, p.gate_step, n);
    }
    if (p.act) {
      Activate<kKind, T>::forward(z[0], z[1], n, A(p.activation.alpha), A(p.activation.limit), act);
      store_run(act, static_cast<T*>(p.act) + row * p.act_stride + block.col0, 1, n);
    }
  }
}

// Row `row` of MXFP8 pre-activations.
struct Mxfp8Row {
  uint8_t* codes;
  uint8_t* scales;

  Mxfp8Row(const EpilogueParams& p, bool gated, int64_t row)
      : codes(static_cast<uint8_t*>(p.preact) + row * (p.preact_stride + (gated ? 2 : 1) * p.mxfp8_scales)),
        scales(codes + p.preact_stride) {}
};

// Where the z of column j of part h of row i stands: z[group * (j / kGroup) + part * h + row * i + j % kGroup].
template <class A>
struct KeptPreact {
  const A* z;
  int64_t group, part, row;
};

// Encodes columns col0 .. col0 + columns of all rows. A scale's 32 columns may lie in two groups, so this comes after
// the epilogue of every group; col0 is a multiple of 32.
template <int64_t kGroup, class A>
static void encode_preact(const EpilogueParams& p, const KeptPreact<A>& kept, int64_t parts, int64_t row0, int64_t rows,
                          int64_t col0, int64_t columns) {
  constexpr int64_t kRun = 16;
  static_assert(kGroup % kRun == 0 && kMxfp8Columns % kRun == 0);
  A block[kMxfp8Columns] = {};
  for (int64_t i = 0; i < rows; ++i) {
    const Mxfp8Row row(p, parts == 2, row0 + i);
    for (int64_t h = 0; h < parts; ++h) {
      const A* z = kept.z + kept.part * h + kept.row * i;
      for (int64_t j = 0; j < columns; j += kMxfp8Columns) {
        const int64_t count = columns - j < kMxfp8Columns ? columns - j : kMxfp8Columns;
        for (int64_t run = 0; run < count; run += kRun) {
          const A* from = z + kept.group * ((j + run) / kGroup) + (j + run) % kGroup;
          for (int64_t l = 0; l < kRun; ++l) block[run + l] = from[l];
        }
        uint8_t* codes = row.codes + h * p.up_offset + (col0 + j) * p.gate_step;
        row.scales[h * p.mxfp8_scales + (col0 + j) / kMxfp8Columns] = encode_mxfp8(block, count, codes, p.gate_step);
      }
    }
  }
}

// C is dL/d act without the output weight.
template <Activation kKind, class T, class A>
static void activation_backward_block(const EpilogueParams& p, const EpilogueBlock<A>& block, int64_t column_block) {
  constexpr bool kGated = is_gated(kKind);
  const int64_t n = block.columns, gate_at = block.col0 * p.gate_step, up_at = p.up_offset + gate_at;
  A z[2][kMaxColumns], act[kMaxColumns], grad[2][kMaxColumns], scaled[kMaxColumns];
  for (int64_t i = 0; i < block.rows; ++i) {
    const int64_t row = block.row0 + i;
    const A weight = static_cast<const A*>(p.slot_weights)[p.row_to_slot[row]];
    if (p.preact_is_mxfp8) {
      const Mxfp8Row from(p, kGated, row);
      decode_mxfp8(from.codes + gate_at, p.gate_step, from.scales, block.col0, n, z[0]);
      if (kGated) decode_mxfp8(from.codes + up_at, p.gate_step, from.scales + p.mxfp8_scales, block.col0, n, z[1]);
    } else {
      const T* preact = static_cast<const T*>(p.preact) + row * p.preact_stride;
      load_run(preact + gate_at, p.gate_step, n, z[0]);
      if (kGated) load_run(preact + up_at, p.gate_step, n, z[1]);
    }
    const A* __restrict c = block.gate + i * block.ld;
    const A* d_act = c;
    if (!p.weights_on_input) {
      for (int64_t j = 0; j < n; ++j) scaled[j] = c[j] * weight;
      d_act = scaled;
    }
    Activate<kKind, T>::backward(z[0], z[1], d_act, n, A(p.activation.alpha), A(p.activation.limit), act, grad[0],
                                 grad[1]);
    if (p.weight_grad_partials) {
      // Sixteen running sums, added up by halves: the same on every instruction set.
      A sums[16] = {};
      for (int64_t j = 0; j + 16 <= n; j += 16) {
        for (int64_t lane = 0; lane < 16; ++lane) sums[lane] += c[j + lane] * act[j + lane];
      }
      for (int64_t j = n / 16 * 16; j < n; ++j) sums[j % 16] += c[j] * act[j];
      for (int64_t width = 8; width > 0; width /= 2) {
        for (int64_t lane = 0; lane < width; ++lane) sums[lane] += sums[lane + width];
      }
      static_cast<A*>(p.weight_grad_partials)[row * p.partials_stride + block.col0 / column_block] = sums[0];
    }
    if (p.act) {
      if (!p.weights_on_input) {
        for (int64_t j = 0; j < n; ++j) act[j] *= weight;
      }
      store_run(act, static_cast<T*>(p.act) + row * p.act_stride + block.col0, 1, n);
    }
    T* target = static_cast<T*>(p.grad_preact) + row * p.preact_stride;
    store_run(grad[0], target + gate_at, p.gate_step, n);
    if (kGated) store_run(grad[1], target + up_at, p.gate_step, n);
    if (p.grad_preact_scaled) {
      target = static_cast<T*>(p.grad_preact_scaled) + row * p.preact_stride;
      for (int half = 0; half < (kGated ? 2 : 1); ++half) {
        for (int64_t j = 0; j < n; ++j) scaled[j] = grad[half][j] * weight;
        store_run(scaled, target + (half ? up_at : gate_at), p.gate_step, n);
      }
    }
  }
}

template <class T, class A>
static void run_any_epilogue(Epilogue kind, const EpilogueParams& p, const EpilogueBlock<A>& block,
                             int64_t column_block) {
  switch (kind) {
    case Epilogue::kStore:
      return store_block<T>(p, block);
    case Epilogue::kStoreSums:
      return sums_block<false>(p, block);
    case Epilogue::kAccumulate:
      return sums_block<true>(p, block);
    case Epilogue::kActivation:
      return with_activation(p.activation.kind, [&]<Activation kKind>() { activation_block<kKind, T>(p, block); });
    case Epilogue::kActivationBackward:
      return with_activation(p.activation.kind,
                             [&]<Activation kKind>() { activation_backward_block<kKind, T>(p, block, column_block); });
  }
}

// What the loops around a micro-kernel call. An instruction set may have its own for some data.
template <class T, class A>
struct EpilogueOf {
  static void run(Epilogue kind, const EpilogueParams& p, const EpilogueBlock<A>& block, int64_t column_block) {
    run_any_epilogue<T>(kind, p, block, column_block);
  }
};

}  // namespace moe::cpu::MOE_ISA
