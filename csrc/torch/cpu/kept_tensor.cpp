#include "torch/cpu/kept_tensor.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <vector>

#include "cpu/kept_memory.h"

// torch 2.11 and later: null where the installed torch is older. The declaration in torch's headers is for extensions
// that refuse to load there.
extern "C" __attribute__((weak)) AOTI_TORCH_EXPORT AOTITorchError
torch_from_blob(void* data, int64_t ndim, const int64_t* sizes_ptr, const int64_t* strides_ptr, int64_t storage_offset,
                int32_t dtype, int32_t device_type, int32_t device_index, AtenTensorHandle* ret, int32_t layout,
                const uint8_t* opaque_metadata, int64_t opaque_metadata_size, void (*deleter)(void* data, void* ctx),
                void* deleter_ctx);

namespace moe::torch_ops {
namespace {

struct ElementType {
  int64_t bytes;
  int32_t code;
};

ElementType element_type(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float:
      return {4, aoti_torch_dtype_float32()};
    case ScalarType::BFloat16:
      return {2, aoti_torch_dtype_bfloat16()};
    case ScalarType::Half:
      return {2, aoti_torch_dtype_float16()};
    case ScalarType::Double:
      return {8, aoti_torch_dtype_float64()};
    default:
      return {0, 0};
  }
}

// 0 for a size that no tensor can have: torch has the message for it.
int64_t bytes_of(torch::headeronly::IntHeaderOnlyArrayRef sizes, int64_t element_bytes) {
  int64_t bytes = element_bytes;
  for (const int64_t size : sizes) {
    if (__builtin_mul_overflow(bytes, size, &bytes)) return 0;
  }
  return bytes;
}

void give_back_block(void*, void* block) { cpu::give_back(static_cast<cpu::KeptBlock*>(block)); }

}  // namespace

Tensor empty_kept(const Tensor& like, torch::headeronly::IntHeaderOnlyArrayRef sizes, ScalarType dtype) {
  const ElementType element = element_type(dtype);
  cpu::KeptBlock* const block = torch_from_blob ? cpu::take_kept_block(bytes_of(sizes, element.bytes)) : nullptr;
  if (!block) return empty_like(like, sizes, dtype);
  const auto dims = static_cast<int64_t>(sizes.size());
  std::vector<int64_t> strides(dims, 1);
  for (int64_t d = dims - 1; d > 0; --d) strides[d - 1] = strides[d] * sizes[d];
  AtenTensorHandle tensor = nullptr;
  if (torch_from_blob(block->data, dims, sizes.data(), strides.data(), 0, element.code, aoti_torch_device_type_cpu(),
                      like.get_device_index(), &tensor, aoti_torch_layout_strided(), nullptr, 0, &give_back_block,
                      block) != AOTI_TORCH_SUCCESS) {
    cpu::give_back(block);
    return empty_like(like, sizes, dtype);
  }
  return Tensor(tensor);
}

}  // namespace moe::torch_ops
