// What every op does before it calls a kernel: say clearly what is wrong with an argument, and make sure that nothing
// a caller can pass, contents of index tensors included, makes a kernel touch memory that is not its own.
#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <sstream>
#include <stdexcept>
#include <string>

#include "moe/types.h"
#include "torch/tensors.h"

namespace moe::torch_ops {

// The parts of a message one after the other. Becomes a RuntimeError in Python.
template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw std::runtime_error(std::move(message).str());
}

inline std::string shape_text(const Tensor& tensor) {
  std::ostringstream text;
  text << "[";
  for (int64_t d = 0; d < tensor.dim(); ++d) text << (d == 0 ? "" : ", ") << tensor.size(d);
  text << "]";
  return std::move(text).str();
}

enum class Place { kCpu, kCuda };

// Checks the arguments of one op; its name begins every message.
class Checks {
 public:
  explicit Checks(const char* op, Place place = Place::kCpu) : op_(op), place_(place) {}

  const char* op() const { return op_; }

  // Fails with "moe_ext::<op>: <parts>" unless ok.
  template <class... Parts>
  void check(bool ok, const Parts&... parts) const {
    if (!ok) [[unlikely]] {
      fail("moe_ext::", op_, ": ", parts...);
    }
  }

  // A tensor in the right place with this many dimensions; `shape` names them, as in "[T, H]".
  void has_dims(const Tensor& tensor, const char* name, int64_t dims, const char* shape) const {
    has_place(tensor, name);
    check(tensor.dim() == dims, name, " must be ", shape, ", got ", shape_text(tensor));
  }

  void has_size(const Tensor& tensor, const char* name, int64_t dim, int64_t size, const char* what) const {
    check(tensor.size(dim) == size, name, " must have ", what, " = ", size, " in dimension ", dim, ", got ",
          shape_text(tensor));
  }

  void has_dtype(const Tensor& tensor, const char* name, ScalarType dtype) const {
    check(tensor.scalar_type() == dtype, name, " must be ", dtype, ", got ", tensor.scalar_type());
  }

  DType data_dtype(const Tensor& tensor, const char* name) const {
    switch (tensor.scalar_type()) {
      case ScalarType::Float:
        return DType::kFloat32;
      case ScalarType::BFloat16:
        return DType::kBFloat16;
      case ScalarType::Half:
        return DType::kFloat16;
      case ScalarType::Double:
        return DType::kFloat64;
      default:
        break;
    }
    fail("moe_ext::", op_, ": ", name, " must be Float, BFloat16, Half or Double, got ", tensor.scalar_type());
  }

  // Routing weights and their gradients: float32, or float64 with float64 data. Contiguous.
  Tensor routing_weights(const Tensor& tensor, const char* name, DType data, int64_t num_tokens, int64_t top_k) const {
    has_dims(tensor, name, 2, "[T, K]");
    has_size(tensor, name, 0, num_tokens, "T");
    has_size(tensor, name, 1, top_k, "K");
    has_dtype(tensor, name, data == DType::kFloat64 ? ScalarType::Double : ScalarType::Float);
    return torch::stable::contiguous(tensor);
  }

  // An int32 index tensor, contiguous. Its values are for the checks below.
  Tensor indices(const Tensor& tensor, const char* name, int64_t dims, const char* shape) const {
    has_dims(tensor, name, dims, shape);
    has_dtype(tensor, name, ScalarType::Int);
    return torch::stable::contiguous(tensor);
  }

  // Every value is below num_rows; negative ones mean "no row".
  void rows_exist(const Tensor& index, const char* name, int64_t num_rows) const {
    const auto [low, high] = extremes(data<int32_t>(index), index.numel());
    check(high < num_rows, name, " names row ", high, ", but there are ", num_rows, " rows");
    static_cast<void>(low);
  }

  // The first `count` values are within [0, limit).
  void slots_exist(const Tensor& index, const char* name, int64_t count, int64_t limit) const {
    if (count == 0) return;
    const auto [low, high] = extremes(data<int32_t>(index), count);
    check(low >= 0 && high < limit, name, " names slot ", low < 0 ? low : high,
          " for an expert's row, but slots are 0 .. ", limit - 1);
  }

  // expert_offsets: at least one value, from 0 or more to num_rows or less, never falling.
  void offsets_fit(const Tensor& offsets, const char* name, int64_t num_rows) const {
    const int32_t* values = data<int32_t>(offsets);
    const int64_t count = offsets.numel();
    check(count >= 1, name, " must be [E + 1], got no values");
    check(values[0] >= 0, name, " must begin at 0 or above, got ", values[0]);
    for (int64_t e = 1; e < count; ++e) {
      check(values[e] >= values[e - 1], name, " must not fall, but [", e - 1, "] is ", values[e - 1], " and [", e,
            "] is ", values[e]);
    }
    check(values[count - 1] <= num_rows, name, " ends at ", values[count - 1], ", but there are ", num_rows, " rows");
  }

  // The entry of `names` that `text` is, as its position.
  int choice(const std::string& text, const char* name, std::initializer_list<const char*> names) const {
    int position = 0;
    std::string known;
    for (const char* candidate : names) {
      if (text == candidate) return position;
      known += (position == 0 ? "" : ", ") + std::string(candidate);
      ++position;
    }
    fail("moe_ext::", op_, ": ", name, " must be one of ", known, ", got '", text, "'");
  }

  void is_ok(Status status) const {
    check(status != Status::kUnsupported, "out of memory or not supported here");
    check(status == Status::kOk, "invalid arguments");
  }

  template <class T>
  static const T* data(const Tensor& tensor) {
    return static_cast<const T*>(tensor.const_data_ptr());
  }

 private:
  struct Extremes {
    int32_t low, high;
  };
  static Extremes extremes(const int32_t* values, int64_t count) {
    Extremes found = {0, -1};
    if (count > 0) found = {values[0], values[0]};
    for (int64_t i = 0; i < count; ++i) {
      found.low = std::min(found.low, values[i]);
      found.high = std::max(found.high, values[i]);
    }
    return found;
  }

  // On the CPU, or on the one CUDA device where the first tensor was.
  void has_place(const Tensor& tensor, const char* name) const {
    if (place_ == Place::kCpu) return check(tensor.is_cpu(), name, " must be on the CPU");
    check(tensor.is_cuda(), name, " must be on a CUDA device");
    const int32_t device = tensor.get_device_index();
    if (device_ < 0) device_ = device;
    check(device == device_, name, " must be on cuda:", device_, " like the other tensors, got cuda:", device);
  }

  const char* op_;
  Place place_;
  mutable int32_t device_ = -1;
};

inline ScalarType weights_dtype(DType data) { return data == DType::kFloat64 ? ScalarType::Double : ScalarType::Float; }

}  // namespace moe::torch_ops
