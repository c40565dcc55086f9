// soft_mix's products of float16 data on tensor cores.
#include "cuda/soft/mma_product.cuh"

namespace moe::cuda::mma {

Outcome soft_product_float16(const SoftProduct& product, const Device& device, Stream stream) {
  return soft_product_of<__half>(product, device, stream);
}

}  // namespace moe::cuda::mma
