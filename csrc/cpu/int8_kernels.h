// What an instruction set provides for int8 weights: one table of functions, filled in csrc/cpu/<isa>/int8*.cpp. Each
// works on a range of rows or on one block of a product, on the calling thread.
#pragma once

#include <cstdint>

#include "moe/activation.h"
#include "moe/fused_experts_int8.h"
#include "moe/types.h"

namespace moe::cpu {

// Rows of quantised values are this many bytes apart, or a multiple, and filled up with zeros.
constexpr int64_t kInt8RowMultiple = 64;

// Rows [begin, end) of a matrix, each to int8 and a scale.
struct Int8QuantizeParams {
  DType dtype;
  const void* source;  // unit stride over columns
  int64_t source_stride;
  int64_t columns;
  int8_t* rows;
  int64_t row_stride;
  float* scales;
};

// What jobs of one product over all experts share.
struct Int8Product {
  int64_t k;
  const int8_t* rows;
  int64_t row_stride;
  const float* row_scales;
  // Row r of the product is rows[row_to_slot[r] / slots_per_row]; null: rows[r].
  const int32_t* row_to_slot = nullptr;
  int64_t slots_per_row = 1;
  const float* slot_weights = nullptr;  // factors of the rows by slot, or null
  Int8Weight weight;
  int64_t scales_expert_stride;
  DType dtype;  // of the bias, and of `out` without activation
  ExpertVector bias;
  // With an activation column j of gate is channel j * gate_step, of up it is up_offset + j * gate_step, and out is
  // float32.
  bool activates = false;
  ActivationRule activation = {};
  int64_t gate_step = 1;
  int64_t up_offset = 0;
  void* out;  // [R, columns], unit stride over columns
  int64_t out_stride;
};

// A block of one expert's rows times a block of the columns of `out`.
struct Int8Job {
  int64_t expert, row0, rows, col0, columns;
};

struct Int8Kernels {
  void (*quantize)(const Int8QuantizeParams&, int64_t begin, int64_t end);
  // `next` is what this thread will probably run after it, whose first weights are fetched early, or null.
  void (*run)(const Int8Product&, const Int8Job& job, const Int8Job* next, void* scratch);
  int64_t (*scratch_bytes)(int64_t rows, int64_t k);
};

// Jobs begin at multiples of this many columns.
constexpr int64_t kInt8ColumnStep = 32;

// Instruction sets that multiply int8 have a table of their own: avx512vnni and amx. The others widen.
const Int8Kernels& portable_int8_kernels();
const Int8Kernels& avx2_int8_kernels();
const Int8Kernels& avx512_int8_kernels();
const Int8Kernels& avx512vnni_int8_kernels();
const Int8Kernels& amx_int8_kernels();

}  // namespace moe::cpu
