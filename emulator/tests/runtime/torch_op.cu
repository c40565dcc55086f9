// A torch operator over the stable ABI: the same launcher for CUDA tensors, and for CPU tensors on the virtual GPU.
#include <cuda_runtime.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

using torch::stable::Tensor;

__global__ void scale_rows(const float* x, const float* scale, float* out, int rows, int columns) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < rows * columns) out[i] = x[i] * scale[i / columns];
}

Tensor run(const Tensor& x, const Tensor& scale) {
  Tensor out = torch::stable::empty_like(x);
  const int rows = static_cast<int>(x.size(0)), columns = static_cast<int>(x.size(1));
  scale_rows<<<(rows * columns + 127) / 128, 128>>>(x.const_data_ptr<float>(), scale.const_data_ptr<float>(),
                                                    out.mutable_data_ptr<float>(), rows, columns);
  const cudaError_t error = cudaGetLastError();
  STD_TORCH_CHECK(error == cudaSuccess, cudaGetErrorString(error));
  return out;
}

STABLE_TORCH_LIBRARY(emulator_test, m) { m.def("scale_rows(Tensor x, Tensor scale) -> Tensor"); }
STABLE_TORCH_LIBRARY_IMPL(emulator_test, CPU, m) { m.impl("scale_rows", TORCH_BOX(&run)); }
