// One job of a grouped GEMM: a block of rows of one expert times a block of columns, on the calling thread, with
// everything that happens to the result before it is stored.
//
//   C[i,j] = sum over k of A[i,k] * B[k,j]      accumulated in float32 (float64 for float64 data) in one fixed order
//
// The order of the sum over k depends on k, and where a job allows it on how many rows its expert has, so results do
// not change with the number of threads or the way work is cut into jobs.
#pragma once

#include <cstdint>

#include "moe/activation.h"
#include "moe/types.h"

namespace moe::cpu {

// A matrix seen through strides. "outer" is the dimension that survives: rows of A, columns of B.
struct GemmOperand {
  const void* data;
  int64_t outer_stride;  // in elements
  int64_t k_stride;
  // Optional indirection: position i stands for index[i] / index_divisor, along k or along the outer dimension.
  const int32_t* index = nullptr;
  int64_t index_divisor = 1;
  bool index_along_k = false;
  bool is_tiled = false;  // B only: ExpertMatrix::is_tiled, outer_stride being its n_stride
};

enum class Epilogue : int32_t {
  kStore,               // out = C + bias
  kStoreSums,           // out (float32) = C
  kAccumulate,          // out (float32) += C
  kActivation,          // pre-activation and activation of a first GEMM
  kActivationBackward,  // gradient through the activation, of the routing weight, and the input of a weight gradient
};

// Rows are absolute (row0 + i), columns too (col0 + j). Tensors have unit stride over columns unless a stride is given.
struct EpilogueParams {
  bool is_cold = false;  // all results together outgrow the caches: better stored past them
  void* out = nullptr;   // kStore: data dtype; sums: float32 (float64 for float64 data)
  int64_t out_row_stride = 0;
  int64_t out_col_stride = 1;
  const void* bias = nullptr;  // indexed by column, data dtype; kActivation: over [G] in the weight's own layout
  int64_t bias_stride = 1;

  // kActivation and kActivationBackward: column j of gate is physical column j * gate_step, of up it is
  // up_offset + j * gate_step. Ungated activations have no up.
  ActivationRule activation = {};
  int64_t up_offset = 0;
  int64_t gate_step = 1;
  void* preact = nullptr;  // [R,G], written by kActivation (null: not kept), read by kActivationBackward
  int64_t preact_stride = 0;
  // preact is MXFP8, format: moe/fused_experts.h. A row has preact_stride = G codes, then the scales of each part.
  bool preact_is_mxfp8 = false;
  int64_t mxfp8_scales = 0;
  void* act = nullptr;  // [R,I], written: act(z); kActivationBackward: act(z) times the output weight
  int64_t act_stride = 0;
  // Routing weights by slot, and which slot a row is. Data dtype's accumulator type.
  const void* slot_weights = nullptr;
  const int32_t* row_to_slot = nullptr;
  bool weights_on_input = false;         // scale z before the bias (forward); leave act unscaled (backward)
  void* grad_preact = nullptr;           // [R,G]
  void* grad_preact_scaled = nullptr;    // [R,G], times the weight, with weights_on_input; else null
  void* weight_grad_partials = nullptr;  // [R, ceil(I / partial_width)] accumulators: <dA, act> per column block
  int64_t partials_stride = 0;
};

struct GemmJob {
  GemmOperand a;
  GemmOperand b;
  int64_t m, n, k;
  // Elements of B from a gate column to its up column; 0 where columns stand alone.
  int64_t pair_offset = 0;
  Epilogue epilogue = Epilogue::kStore;
  const EpilogueParams* params = nullptr;
  int64_t row0 = 0;
  int64_t col0 = 0;
  // A and B have changed places, for a result that is stored the other way round: its bits must not show it.
  bool operands_swapped = false;
  // Rows of the whole expert, where the order of sums may depend on them; else 0.
  int64_t expert_rows = 0;
  // Where B of the job begins that this thread will probably do next: worth fetching, never read. Strides as here.
  const void* next_b = nullptr;
  // a.index / b.index are offset by the caller, so position 0 is the job's first row (or k).
};

struct GemmKernel {
  void (*run)(const GemmJob&, void* scratch);
  int64_t (*scratch_bytes)(const GemmJob&);
  int64_t (*row_chunk)(const GemmJob&);  // how many of an expert's rows one job takes at most
  int64_t column_block;                  // columns of one epilogue call: jobs start at multiples of it
};

}  // namespace moe::cpu
