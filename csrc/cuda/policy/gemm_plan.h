// Numbers only: which kernel and which tile serve a problem. Host code without CUDA, so that it is tested anywhere.
#pragma once

#include <cstdint>
#include <string>

#include "moe/types.h"

namespace moe::cuda {

enum class Family : int32_t {
  kSimt,   // any dtype, strides and sizes; exact float32
  kMma,    // mma.sync: bfloat16, float16, tf32; aligned operands
  kWgmma,  // wgmma and TMA, sm_90a: bfloat16, float16; aligned operands
};

struct GemmPlan {
  Family family;
  int32_t block_m, block_n, block_k;
  int32_t stages;

  bool operator==(const GemmPlan&) const = default;
};

// What the choice depends on. Never on the routing: that is known to the device only.
struct GemmProblem {
  int32_t capability;
  int32_t multiprocessors;
  int64_t shared_memory_per_block;
  DType dtype;
  bool allow_tf32;
  bool aligned;  // every operand has a dimension of unit stride; all other strides and addresses: multiples of 16 bytes
  int64_t num_rows, num_experts;
  int64_t n, k;        // of the widest product that shares the tiles
  bool deterministic;  // the plan may not depend on num_rows
};

// For products over rows (the tile list is made for block_m), and for weight gradients (block_m x block_n of [n, k]).
GemmPlan rows_plan(const GemmProblem& problem);
GemmPlan wgrad_plan(const GemmProblem& problem);

// The plan of one of several products that share tiles of rows: with narrower blocks where wide ones would reach far
// past its n columns. Bits don't depend on it.
GemmPlan for_columns(const GemmPlan& plan, int64_t n);

// The mma engine's products over rows go through k in steps of this many bytes (64 elements, or 32 of tf32). Shared
// memory holds `stages` steps of both operands and what keeps them apart in the banks.
constexpr int32_t kMmaStepBytes = 128;
constexpr int64_t mma_rows_shared_bytes(int32_t block_m, int32_t block_n, int32_t stages) {
  return stages * ((block_m + block_n) * int64_t{kMmaStepBytes} + 1152);
}

// The mma engine's weight gradients go through the rows in steps of step_bytes of a column: 64 (32 rows, or 16 of
// tf32), or 128 (64 rows of 16-bit data). Shared memory holds `stages` steps of both operands.
constexpr int32_t kMmaWgradStepBytes = 64, kMmaWgradLongStepBytes = 128;
constexpr int64_t mma_wgrad_shared_bytes(int32_t block_m, int32_t block_n, int32_t step_bytes, int32_t stages) {
  return int64_t{stages} * (block_m + block_n) * step_bytes;
}

// The wgmma engine's products, also weight gradients: stages of 128 bytes of k, what sums pass through, barriers.
constexpr int64_t wgmma_shared_bytes(int32_t block_m, int32_t block_n, int32_t stages) {
  return stages * (block_m + block_n) * int64_t{128} + 37 * 1024;
}

// Dynamic shared memory of a block; 0 for simt, whose blocks fit everywhere.
int64_t shared_bytes(const GemmPlan& plan, bool wgrad);

// "mma 128x128x64, 4 stages"
std::string to_string(const GemmPlan& plan);

}  // namespace moe::cuda
