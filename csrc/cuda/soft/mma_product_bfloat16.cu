// soft_mix's products of bfloat16 data on tensor cores.
#include "cuda/soft/mma_product.cuh"

namespace moe::cuda::mma {

Outcome soft_product_bfloat16(const SoftProduct& product, const Device& device, Stream stream) {
  return soft_product_of<__nv_bfloat16>(product, device, stream);
}

}  // namespace moe::cuda::mma
