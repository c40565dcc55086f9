// From a product and a plan to the kernel that fits them.
#pragma once

#include <algorithm>

#include "cuda/common/launch_kernel.cuh"
#include "cuda/device.h"
#include "cuda/grouped_gemm/epilogue_host.h"
#include "cuda/grouped_gemm/wgmma/rows_kernel.cuh"

namespace moe::cuda::wgmma {

struct RowsMaps {
  CUtensorMap weight = {}, rows = {};
};

inline Outcome make_maps(const char* name, const RowsProduct& product, RowsSchedule& schedule, RowsMaps& maps) {
  const WeightOperand& weight = product.weight;
  const RowOperand& rows = product.rows;
  if (product.k == 0 || product.num_experts == 0) return {};  // nothing is loaded
  schedule.matrix_step = weight.expert_stride == 0 ? 0 : 1;
  MatrixStack stack{.data = weight.data,
                    .columns = product.k,
                    .rows = product.n,
                    .matrices = schedule.matrix_step == 0 ? 1 : product.num_experts,
                    .row_stride = weight.n_stride,
                    .matrix_stride = weight.expert_stride};
  if (weight.k_stride != 1 || !fits_tensor_map(stack)) {
    if (weight.n_stride != 1) return {Status::kUnsupported, 0, name};
    schedule.transposed = true;
    std::swap(stack.columns, stack.rows);
    stack.row_stride = weight.k_stride;
    if (!fits_tensor_map(stack)) return {Status::kUnsupported, 0, name};
  }
  if (const Outcome outcome = make_tensor_map(product.dtype, stack, maps.weight); !outcome.ok()) return outcome;

  const MatrixStack matrix{.data = rows.data,
                           .columns = product.k,
                           .rows = rows.num_rows,
                           .matrices = 1,
                           .row_stride = rows.stride,
                           .matrix_stride = 0};
  schedule.rows_by_tensor = !rows.gather && fits_tensor_map(matrix);
  return schedule.rows_by_tensor ? make_tensor_map(product.dtype, matrix, maps.rows) : Outcome{};
}

template <class T, int kBlockN, class Epilogue>
Outcome launch_block(const char* name, const RowsProduct& product, const Epilogue& epilogue, const Device& device,
                     Stream stream) {
  RowsSchedule schedule = {};
  schedule.order = column_order(epilogue);
  schedule.block_outputs = schedule.order == ColumnOrder::kPlain ? kBlockN : kBlockN / 2;
  const int64_t outputs = TileColumns{schedule.order, product.n, 0}.outputs();
  const int64_t column_blocks = (outputs + schedule.block_outputs - 1) / schedule.block_outputs;
  const int64_t works = max_tiles(product.num_rows, product.num_experts, kBlockM) * column_blocks;
  if (works == 0) return {};
  if (works > INT32_MAX) return {Status::kUnsupported, 0, name};
  schedule.column_blocks = static_cast<uint32_t>(column_blocks);
  schedule.to_row_tile = FastDivide(schedule.column_blocks);
  RowsMaps maps;
  if (const Outcome outcome = make_maps(name, product, schedule, maps); !outcome.ok()) return outcome;
  const dim3 grid(static_cast<unsigned>(std::min<int64_t>(works, device.multiprocessors)));
  return launch(name, rows_kernel<T, kBlockN, Epilogue>, grid, dim3(kThreads), sizeof(SharedMemory<kBlockN>), stream,
                maps.weight, maps.rows, product, prepare(epilogue, product), schedule);
}

template <class Epilogue>
Outcome launch_rows(const char* name, const RowsProduct& product, const Epilogue& epilogue, const GemmPlan& plan,
                    Stream stream) {
  if (product.tiles.decode.topk_ids || !fits(product.rows)) return {Status::kUnsupported, 0, name};
  Device device;
  if (const Outcome outcome = current_device(device); !outcome.ok()) return outcome;
  if (device.capability != kCapability) return {Status::kUnsupported, 0, name};
  const auto with_block = [&]<class T>(const T*) -> Outcome {
    if (is_plan<256>(plan)) return launch_block<T, 256>(name, product, epilogue, device, stream);
    if (is_plan<128>(plan)) return launch_block<T, 128>(name, product, epilogue, device, stream);
    return {Status::kUnsupported, 0, name};
  };
  if (product.dtype == DType::kBFloat16) return with_block(static_cast<const __nv_bfloat16*>(nullptr));
  if (product.dtype == DType::kFloat16) return with_block(static_cast<const __half*>(nullptr));
  return {Status::kUnsupported, 0, name};
}

}  // namespace moe::cuda::wgmma
