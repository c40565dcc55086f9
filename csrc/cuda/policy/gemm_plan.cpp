#include "cuda/policy/gemm_plan.h"

#include <algorithm>

namespace moe::cuda {
namespace {

bool is_half(DType dtype) { return dtype == DType::kBFloat16 || dtype == DType::kFloat16; }

bool has_wgmma([[maybe_unused]] const GemmProblem& p) {
#ifdef MOE_EXT_WITHOUT_WGMMA
  return false;
#else
  return p.capability == 90 && p.aligned && is_half(p.dtype);
#endif
}

bool has_mma(const GemmProblem& p) {
  return p.capability >= 80 && p.aligned && (is_half(p.dtype) || (p.dtype == DType::kFloat32 && p.allow_tf32));
}

// Rows of an expert where all get the same number.
int64_t mean_rows(const GemmProblem& p) {
  return (p.num_rows + p.num_experts - 1) / std::max<int64_t>(p.num_experts, 1);
}

// Blocks of 256 columns cover hardly more of `size` than blocks of 128 do.
bool fills_wide(int64_t size) {
  const auto covered = [&](int64_t block) { return (size + block - 1) / block * block; };
  return covered(256) * 100 <= covered(128) * 107;
}

int32_t elements(const GemmProblem& p, int32_t bytes) { return bytes / static_cast<int32_t>(size_of(p.dtype)); }

constexpr int32_t kWgmmaStep = 64;
constexpr GemmPlan kWgmmaWide = {Family::kWgmma, 128, 256, kWgmmaStep, 3};
constexpr GemmPlan kWgmmaNarrow = {Family::kWgmma, 128, 128, kWgmmaStep, 5};

GemmPlan simt_plan(const GemmProblem& p, int32_t block_m) {
  return {Family::kSimt, block_m, 64, p.dtype == DType::kFloat64 ? 8 : 16, 2};
}

// 128 rows keep the tensor cores busiest. Fewer pay where an expert has fewer: what a tile has too much is multiplied
// in vain, and with so few rows the weight's way through memory decides anyway.
constexpr int64_t kRowsFor16 = 16, kRowsFor64 = 96;

GemmPlan mma_rows_plan(const GemmProblem& p) {
  const int64_t rows = p.deterministic ? INT64_MAX : mean_rows(p);
  const int32_t block_k = elements(p, kMmaStepBytes);
  if (rows <= kRowsFor16) return {Family::kMma, 16, 128, block_k, 4};
  if (rows <= kRowsFor64) return {Family::kMma, 64, 128, block_k, 3};
  // Wide tiles read less, if there are enough of them for all multiprocessors. Without a number of rows: if each expert
  // has one.
  const int64_t tiles = p.deterministic ? p.num_experts : p.num_rows / 128 + p.num_experts / 2;
  const bool wide = is_half(p.dtype) && fills_wide(p.n) && tiles * (p.n / 256) >= p.multiprocessors &&
                    mma_rows_shared_bytes(128, 256, 2) <= p.shared_memory_per_block;
  if (!wide) return {Family::kMma, 128, 128, block_k, 2};
  return {Family::kMma, 128, 256, block_k, mma_rows_shared_bytes(128, 256, 3) <= p.shared_memory_per_block ? 3 : 2};
}

// tf32 has short steps only, of 16 rows.
int32_t wgrad_step_bytes(const GemmPlan& plan) {
  return plan.block_k < 64 ? kMmaWgradStepBytes : kMmaWgradLongStepBytes;
}

}  // namespace

GemmPlan rows_plan(const GemmProblem& p) {
  // wgmma's tiles have 128 rows only; from this number on they are no worse than mma's of 64.
  constexpr int64_t kRowsForWgmma = 64;
  if (has_wgmma(p) && (p.deterministic || mean_rows(p) > kRowsForWgmma)) {
    return fills_wide(p.n) ? kWgmmaWide : kWgmmaNarrow;
  }
  if (has_mma(p)) return mma_rows_plan(p);
  return simt_plan(p, !p.deterministic && mean_rows(p) <= kRowsFor16 ? 16 : 64);
}

// Tiles of [n, k] for each expert: their number doesn't depend on the rows.
GemmPlan wgrad_plan(const GemmProblem& p) {
  if (has_wgmma(p)) return fills_wide(p.k) ? kWgmmaWide : kWgmmaNarrow;
  if (!has_mma(p)) return simt_plan(p, 64);
  const int32_t step = elements(p, kMmaWgradStepBytes), long_step = elements(p, kMmaWgradLongStepBytes);
  if (!is_half(p.dtype)) return {Family::kMma, 128, 128, step, 3};
  // Long steps where as many blocks find room as registers allow: one of wide tiles, else two.
  const auto fit = [&](int64_t blocks, int32_t block_n, int32_t step_bytes, int32_t stages) {
    return blocks * mma_wgrad_shared_bytes(128, block_n, step_bytes, stages) <= p.shared_memory_per_block;
  };
  const int64_t wide_tiles = p.num_experts * (p.n / 128) * (p.k / 256);
  if (p.n >= 128 && fills_wide(p.k) && wide_tiles >= p.multiprocessors) {
    if (fit(1, 256, kMmaWgradLongStepBytes, 3)) return {Family::kMma, 128, 256, long_step, 3};
    if (fit(1, 256, kMmaWgradStepBytes, 4)) return {Family::kMma, 128, 256, step, 4};
  }
  if (p.n <= 64) return {Family::kMma, 64, 128, step, 4};
  if (fit(2, 128, kMmaWgradLongStepBytes, 2)) return {Family::kMma, 128, 128, long_step, 2};
  return {Family::kMma, 128, 128, step, 3};
}

GemmPlan for_columns(const GemmPlan& plan, int64_t n) {
  if (plan.family == Family::kSimt || plan.block_n != 256 || fills_wide(n)) return plan;
  return {plan.family, plan.block_m, 128, plan.block_k, plan.family == Family::kMma ? 2 : kWgmmaNarrow.stages};
}

int64_t shared_bytes(const GemmPlan& plan, bool wgrad) {
  switch (plan.family) {
    case Family::kMma:
      return wgrad ? mma_wgrad_shared_bytes(plan.block_m, plan.block_n, wgrad_step_bytes(plan), plan.stages)
                   : mma_rows_shared_bytes(plan.block_m, plan.block_n, plan.stages);
    case Family::kWgmma:
      return wgmma_shared_bytes(plan.block_m, plan.block_n, plan.stages);
    case Family::kSimt:
      break;
  }
  return 0;
}

std::string to_string(const GemmPlan& plan) {
  const char* const family = plan.family == Family::kSimt ? "simt" : plan.family == Family::kMma ? "mma" : "wgmma";
  const auto number = [](int32_t value) { return std::to_string(value); };
  return std::string(family) + " " + number(plan.block_m) + "x" + number(plan.block_n) + "x" + number(plan.block_k) +
         ", " + number(plan.stages) + " stages";
}

}  // namespace moe::cuda
