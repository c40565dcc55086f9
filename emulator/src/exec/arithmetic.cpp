#include "exec/arithmetic.h"

#include <array>

namespace vgpu {
namespace {

enum Family : size_t { kInteger, kFloat, kHalf };

// The family of the last type that the instruction names: mixed forms end with the narrower type.
Family family(const Decoder& decoder) {
  TypeInfo type;
  for (const std::string& modifier : decoder.rest()) {
    if (const TypeInfo info = type_info(modifier); info.bits != 0) type = info;
  }
  if (type.bits == 0) decoder.unknown("wants a type");
  if (type.name == "f32x2") decoder.unsupported(".f32x2, which needs sm_100,");
  if (type.name == "f16" || type.name == "bf16" || type.name == "f16x2" || type.name == "bf16x2") return kHalf;
  return type.kind == TypeInfo::kFloat ? kFloat : kInteger;
}

template <Decode kOfInteger, Decode kOfFloat, Decode kOfHalf>
void decode_by_family(Decoder& decoder) {
  constexpr std::array<Decode, 3> kDecoders{kOfInteger, kOfFloat, kOfHalf};
  const Decode decode = kDecoders[family(decoder)];
  if (decode == nullptr) decoder.unknown("it has no such type");
  decode(decoder);
}

const RegisterDecoders kRegistered({
    {"add", decode_by_family<decode_integer_add, decode_float_add, decode_half_add>},
    {"sub", decode_by_family<decode_integer_sub, decode_float_sub, decode_half_sub>},
    {"mul", decode_by_family<decode_integer_mul, decode_float_mul, decode_half_mul>},
    {"mad", decode_by_family<decode_integer_mad, decode_float_fma, nullptr>},
    {"fma", decode_by_family<nullptr, decode_float_fma, decode_half_fma>},
    {"div", decode_by_family<decode_integer_div, decode_float_div, nullptr>},
    {"neg", decode_by_family<decode_integer_neg, decode_float_neg, decode_half_neg>},
    {"abs", decode_by_family<decode_integer_abs, decode_float_abs, decode_half_abs>},
    {"min", decode_by_family<decode_integer_min, decode_float_min, decode_half_min>},
    {"max", decode_by_family<decode_integer_max, decode_float_max, decode_half_max>},
});

}  // namespace
}  // namespace vgpu
