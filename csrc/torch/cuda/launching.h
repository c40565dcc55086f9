// What every CUDA op needs around its kernels: the device, the stream, memory and errors as exceptions.
#pragma once

#include <torch/csrc/stable/accelerator.h>

#include <optional>

#include "cuda/device.h"
#include "torch/library.h"

namespace moe::torch_ops {

// Makes the device of a tensor the current one for its lifetime; kernels go to PyTorch's current stream there.
class Launching {
 public:
  Launching(const Checks& checks, const Tensor& on);

  cuda::Stream stream() const { return stream_; }
  const cuda::Device& device() const { return device_; }
  // PyTorch's own switch for float32 products, at the time of the call.
  static bool allow_tf32();

  // Memory until the end of the op, from PyTorch's allocator; it may be reused at once by what the stream does next.
  void* workspace(int64_t bytes);

  // Throws unless the launch went well; `arguments` describe the problem.
  template <class... Parts>
  void is_ok(const cuda::Outcome& outcome, const Parts&... arguments) const {
    if (outcome.ok()) [[likely]] {
      return;
    }
    const char* kernel = outcome.kernel != nullptr ? outcome.kernel : "launcher";
    if (outcome.status != Status::kLaunchFailed) {
      fail("moe_ext::", checks_.op(), ": ", kernel, " does not serve these arguments: ", arguments...);
    }
    fail("moe_ext::", checks_.op(), ": kernel ", kernel, " failed: ", cuda::error_text(outcome.cuda_error), "; ",
         arguments...);
  }

 private:
  const Checks& checks_;
  Tensor on_;
  std::optional<torch::stable::accelerator::DeviceGuard> guard_;
  cuda::Stream stream_ = nullptr;
  cuda::Device device_ = {};
  std::optional<Tensor> workspace_;
};

}  // namespace moe::torch_ops
