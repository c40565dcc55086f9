// Element-wise reductions of asynchronous copies and red.async.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/decode.h"
#include "runtime/tensor_map.h"

namespace vgpu {

enum class AsyncReduction : uint8_t { kNone, kAdd, kMin, kMax, kInc, kDec, kAnd, kOr, kXor };
enum class AsyncType : uint8_t { kU32, kS32, kU64, kS64, kF16, kBf16, kF32, kF64, kB32, kB64 };

// The operation's modifier, consumed. kNone when there is none.
AsyncReduction take_reduction(Decoder& decoder);
// Which type has this name or is the elements' of a tensor map; false: none that can be reduced.
bool reduction_type(const std::string& name, AsyncType& type);
bool reduction_type(TensorMapType tensor_type, AsyncType& type);
bool has_reduction(AsyncReduction operation, AsyncType type);
uint32_t bytes_of(AsyncType type);

// to[k] = to[k] op from[k]; each element in one atomic step.
void reduce_elements(AsyncReduction operation, AsyncType type, std::byte* to, const std::byte* from, size_t bytes);

}  // namespace vgpu
