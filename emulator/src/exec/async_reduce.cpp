#include "exec/async_reduce.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <string>
#include <type_traits>

#include "exec/number_formats.h"

namespace vgpu {
namespace {

constexpr const char* kOperations[] = {"", "add", "min", "max", "inc", "dec", "and", "or", "xor"};

struct HalfValue {
  uint16_t bits;
  static float widen(uint16_t b) { return half_to_float(b); }
  static uint16_t narrow(double x) { return static_cast<uint16_t>(encode<Half>(x, Rounding::kNearestEven)); }
};
struct BfloatValue {
  uint16_t bits;
  static float widen(uint16_t b) { return bfloat_to_float(b); }
  static uint16_t narrow(double x) { return static_cast<uint16_t>(encode<Bfloat>(x, Rounding::kNearestEven)); }
};

template <class T>
constexpr bool kIsSmallFloat = std::is_same_v<T, HalfValue> || std::is_same_v<T, BfloatValue>;

// min and max of PTX: the operand that is not NaN; −0 is less than +0.
template <class Value>
uint16_t pick(uint16_t a, uint16_t b, bool smaller) {
  const float x = Value::widen(a), y = Value::widen(b);
  if (std::isnan(x)) return std::isnan(y) ? kHalfNan : b;
  if (std::isnan(y)) return a;
  if (x == y) return (std::signbit(x) == smaller) ? a : b;
  return (x < y) == smaller ? a : b;
}

template <class T>
T apply(AsyncReduction operation, T a, T b) {
  if constexpr (kIsSmallFloat<T>) {
    switch (operation) {
      case AsyncReduction::kAdd:
        return {T::narrow(static_cast<double>(T::widen(a.bits)) + static_cast<double>(T::widen(b.bits)))};
      case AsyncReduction::kMin:
        return {pick<T>(a.bits, b.bits, true)};
      default:
        return {pick<T>(a.bits, b.bits, false)};
    }
  } else if constexpr (std::is_floating_point_v<T>) {
    return a + b;
  } else {
    using U = std::make_unsigned_t<T>;
    switch (operation) {
      case AsyncReduction::kAdd:
        return static_cast<T>(static_cast<U>(a) + static_cast<U>(b));
      case AsyncReduction::kMin:
        return std::min(a, b);
      case AsyncReduction::kMax:
        return std::max(a, b);
      case AsyncReduction::kInc:
        return a >= b ? 0 : a + 1;
      case AsyncReduction::kDec:
        return a == 0 || a > b ? b : a - 1;
      case AsyncReduction::kAnd:
        return a & b;
      case AsyncReduction::kOr:
        return a | b;
      default:
        return a ^ b;
    }
  }
}

// Other clusters run on other host threads and may reduce into the same elements.
template <class T>
void reduce_as(AsyncReduction operation, std::byte* to, const std::byte* from, size_t bytes) {
  for (size_t at = 0; at + sizeof(T) <= bytes; at += sizeof(T)) {
    std::atomic_ref<T> target(*reinterpret_cast<T*>(to + at));
    T value;
    std::memcpy(&value, from + at, sizeof(T));
    T old = target.load(std::memory_order_relaxed);
    while (!target.compare_exchange_weak(old, apply<T>(operation, old, value), std::memory_order_relaxed)) {
    }
  }
}

}  // namespace

AsyncReduction take_reduction(Decoder& d) {
  for (uint8_t k = 1; k < std::size(kOperations); ++k) {
    if (d.take(kOperations[k])) return static_cast<AsyncReduction>(k);
  }
  return AsyncReduction::kNone;
}

bool reduction_type(const std::string& name, AsyncType& type) {
  constexpr const char* kNames[] = {"u32", "s32", "u64", "s64", "f16", "bf16", "f32", "f64", "b32", "b64"};
  for (uint8_t k = 0; k < std::size(kNames); ++k) {
    if (name == kNames[k]) return type = static_cast<AsyncType>(k), true;
  }
  return false;
}

bool reduction_type(TensorMapType tensor_type, AsyncType& type) {
  switch (tensor_type) {
    case TensorMapType::kU32:
      return type = AsyncType::kU32, true;
    case TensorMapType::kS32:
      return type = AsyncType::kS32, true;
    case TensorMapType::kU64:
      return type = AsyncType::kU64, true;
    case TensorMapType::kS64:
      return type = AsyncType::kS64, true;
    case TensorMapType::kF16:
      return type = AsyncType::kF16, true;
    case TensorMapType::kBf16:
      return type = AsyncType::kBf16, true;
    case TensorMapType::kF32:
      return type = AsyncType::kF32, true;
    default:
      return false;
  }
}

bool has_reduction(AsyncReduction operation, AsyncType type) {
  const bool small_float = type == AsyncType::kF16 || type == AsyncType::kBf16;
  const bool untyped = type == AsyncType::kB32 || type == AsyncType::kB64;
  const bool real = type == AsyncType::kF32 || type == AsyncType::kF64;
  switch (operation) {
    case AsyncReduction::kAdd:
      return !untyped;
    case AsyncReduction::kMin:
    case AsyncReduction::kMax:
      return !untyped && !real;
    case AsyncReduction::kInc:
    case AsyncReduction::kDec:
      return type == AsyncType::kU32;
    case AsyncReduction::kNone:
      return false;
    default:
      return !real && !small_float;
  }
}

uint32_t bytes_of(AsyncType type) {
  switch (type) {
    case AsyncType::kF16:
    case AsyncType::kBf16:
      return 2;
    case AsyncType::kU32:
    case AsyncType::kS32:
    case AsyncType::kF32:
    case AsyncType::kB32:
      return 4;
    default:
      return 8;
  }
}

void reduce_elements(AsyncReduction operation, AsyncType type, std::byte* to, const std::byte* from, size_t bytes) {
  switch (type) {
    case AsyncType::kU32:
    case AsyncType::kB32:
      return reduce_as<uint32_t>(operation, to, from, bytes);
    case AsyncType::kS32:
      return reduce_as<int32_t>(operation, to, from, bytes);
    case AsyncType::kU64:
    case AsyncType::kB64:
      return reduce_as<uint64_t>(operation, to, from, bytes);
    case AsyncType::kS64:
      return reduce_as<int64_t>(operation, to, from, bytes);
    case AsyncType::kF16:
      return reduce_as<HalfValue>(operation, to, from, bytes);
    case AsyncType::kBf16:
      return reduce_as<BfloatValue>(operation, to, from, bytes);
    case AsyncType::kF32:
      return reduce_as<float>(operation, to, from, bytes);
    case AsyncType::kF64:
      return reduce_as<double>(operation, to, from, bytes);
  }
}

}  // namespace vgpu
