// wgmma: weight gradients.
#include <algorithm>
#include <utility>

#include "cuda/common/launch_kernel.cuh"
#include "cuda/device.h"
#include "cuda/grouped_gemm/wgmma/wgrad_kernel.cuh"

namespace moe::cuda::wgmma {
namespace {

constexpr const char* kName = "wgmma::wgrad";

Outcome prepare_operand(DType dtype, WgradOperand& operand, CUtensorMap& map) {
  const RowOperand& rows = operand.rows;
  const MatrixStack matrix{.data = rows.data,
                           .columns = operand.columns,
                           .rows = rows.num_rows,
                           .matrices = 1,
                           .row_stride = rows.stride,
                           .matrix_stride = 0};
  operand.by_tensor = !rows.gather && fits_tensor_map(matrix);
  return operand.by_tensor ? make_tensor_map(dtype, matrix, map) : Outcome{};
}

template <class T, int kBlockN>
Outcome launch_block(DType dtype, WgradArguments arguments, int64_t num_experts, const Device& device, Stream stream) {
  const auto blocks_of = [](int32_t size, int32_t block) { return size / block + (size % block != 0); };
  const int64_t tiles_n = blocks_of(arguments.right.columns, kBlockN);
  const int64_t tiles = tiles_n * blocks_of(arguments.left.columns, kBlockM), works = tiles * num_experts;
  if (works == 0) return {};
  if (works > INT32_MAX) return {Status::kUnsupported, 0, kName};
  arguments.works = static_cast<uint32_t>(works);
  arguments.tiles_n = static_cast<uint32_t>(tiles_n);
  arguments.tiles = static_cast<uint32_t>(tiles);
  arguments.by_tiles_n = FastDivide(arguments.tiles_n);
  arguments.by_tiles = FastDivide(arguments.tiles);
  CUtensorMap left_map = {}, right_map = {};
  Outcome outcome = prepare_operand(dtype, arguments.left, left_map);
  if (outcome.ok()) outcome = prepare_operand(dtype, arguments.right, right_map);
  if (!outcome.ok()) return outcome;
  const dim3 grid(static_cast<unsigned>(std::min<int64_t>(works, device.multiprocessors)));
  return launch(kName, wgrad_kernel<T, kBlockN>, grid, dim3(kThreads), sizeof(SharedMemory<kBlockN>), stream, left_map,
                right_map, arguments);
}

}  // namespace

Outcome wgrad(const WgradProduct& product, const GemmPlan& plan, Stream stream) {
  WgradArguments arguments = {};
  arguments.left = {product.left, product.n, false};
  arguments.right = {product.right, product.k, false};
  arguments.expert_offsets = product.expert_offsets;
  arguments.num_rows = static_cast<int32_t>(product.num_rows);
  arguments.out = product.out;
  arguments.out_expert_stride = product.out_expert_stride;
  arguments.out_stride = product.out_n_stride;
  arguments.accumulate = product.accumulate;
  int64_t unit_stride = product.out_k_stride;
  if (unit_stride != 1) {
    // The transposed product, contiguous along what is then its n.
    std::swap(arguments.left, arguments.right);
    std::swap(arguments.out_stride, unit_stride);
  }
  const int64_t run = 16 / (product.accumulate ? size_of(DType::kFloat32) : size_of(product.dtype));
  arguments.vector = arguments.right.columns % run == 0 && arguments.out_stride % run == 0 &&
                     product.out_expert_stride % run == 0 && reinterpret_cast<uintptr_t>(product.out) % 16 == 0;
  if (unit_stride != 1 || product.num_rows > INT32_MAX || !fits(product.left) || !fits(product.right)) {
    return {Status::kUnsupported, 0, kName};
  }
  Device device;
  if (const Outcome outcome = current_device(device); !outcome.ok()) return outcome;
  if (device.capability != kCapability) return {Status::kUnsupported, 0, kName};
  const auto with_block = [&]<class T>(const T*) -> Outcome {
    if (is_plan<256>(plan)) {
      return launch_block<T, 256>(product.dtype, arguments, product.num_experts, device, stream);
    }
    if (is_plan<128>(plan)) {
      return launch_block<T, 128>(product.dtype, arguments, product.num_experts, device, stream);
    }
    return {Status::kUnsupported, 0, kName};
  };
  if (product.dtype == DType::kBFloat16) return with_block(static_cast<const __nv_bfloat16*>(nullptr));
  if (product.dtype == DType::kFloat16) return with_block(static_cast<const __half*>(nullptr));
  return {Status::kUnsupported, 0, kName};
}

}  // namespace moe::cuda::wgmma
