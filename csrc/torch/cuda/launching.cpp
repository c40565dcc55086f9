#include "torch/cuda/launching.h"

#include <dlfcn.h>

#ifdef MOE_EXT_VIRTUAL
#include "virtual/capture.h"
#endif

namespace moe::torch_ops {

namespace {

// Parts of torch that this library is not linked to: a build of torch without CUDA has not got them. By the name of the
// library that torch has loaded, since what torch loads is not visible to the rest of the process.
template <class Function>
Function* of_torch(const char* library, const char* symbol) {
  void* loaded = dlopen(library, RTLD_LAZY | RTLD_NOLOAD);
  return loaded == nullptr ? nullptr : reinterpret_cast<Function*>(dlsym(loaded, symbol));
}

#ifndef MOE_EXT_VIRTUAL
cuda::Stream current_stream(const Checks& checks, int32_t device) {
  static const auto get = of_torch<int32_t(int32_t, void**)>("libtorch_cuda.so", "aoti_torch_get_current_cuda_stream");
  checks.check(get != nullptr, "this build of torch has no CUDA");
  void* stream = nullptr;
  checks.check(get(device, &stream) == 0, "torch has no current stream on cuda:", device);
  return stream;
}
#endif

}  // namespace

Launching::Launching(const Checks& checks, const Tensor& on) : checks_(checks), on_(on) {
#ifdef MOE_EXT_VIRTUAL
  stream_ = virtual_gpu::stream();
#else
  const int32_t index = on.get_device_index();
  guard_.emplace(index);
  stream_ = current_stream(checks, index);
#endif
  is_ok(cuda::current_device(device_));
  checks.check(device_.capability >= 80, "CUDA devices need compute capability 8.0 or newer, this one has ",
               device_.capability / 10, ".", device_.capability % 10);
}

bool Launching::allow_tf32() {
  // at::globalContext().float32Precision(Float32Backend::CUDA, Float32Op::MATMUL) == Float32Precision::TF32, which
  // follows both torch.backends.cuda.matmul.allow_tf32 and .fp32_precision.
  static const auto context = of_torch<void*()>("libtorch_cpu.so", "_ZN2at13globalContextEv");
  static const auto precision = of_torch<int32_t(const void*, int32_t, int32_t)>(
      "libtorch_cpu.so", "_ZNK2at7Context16float32PrecisionENS_14Float32BackendENS_9Float32OpE");
  constexpr int32_t kCuda = 1, kMatmul = 3, kTf32 = 2;
  return context != nullptr && precision != nullptr && precision(context(), kCuda, kMatmul) == kTf32;
}

void* Launching::workspace(int64_t bytes) {
  if (bytes == 0) return nullptr;
  workspace_ = empty_like(on_, {bytes}, ScalarType::Byte);
  return workspace_->mutable_data_ptr();
}

}  // namespace moe::torch_ops
