// The words that every op's contract uses. No torch, no CUDA: plain numbers that any backend can read.
#pragma once

#include <cstdint>

namespace moe {

enum class DType : int32_t { kFloat32, kBFloat16, kFloat16, kFloat64 };

constexpr int64_t size_of(DType dtype) { return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2; }

// What a launcher reports. Launchers never throw; csrc/torch turns a failure into an exception.
enum class Status : int32_t { kOk, kUnsupported, kInvalidArgument, kOutOfMemory, kLaunchFailed };

}  // namespace moe
