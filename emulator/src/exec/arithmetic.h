// The decoders of one opcode for its families of types; exec/arithmetic.cpp picks by the type.
#pragma once

#include "core/decode.h"

namespace vgpu {

// exec/integer.cpp
void decode_integer_add(Decoder& decoder);
void decode_integer_sub(Decoder& decoder);
void decode_integer_mul(Decoder& decoder);
void decode_integer_mad(Decoder& decoder);
void decode_integer_div(Decoder& decoder);
void decode_integer_neg(Decoder& decoder);
void decode_integer_abs(Decoder& decoder);
void decode_integer_min(Decoder& decoder);
void decode_integer_max(Decoder& decoder);

// exec/float.cpp: f32, f64
void decode_float_add(Decoder& decoder);
void decode_float_sub(Decoder& decoder);
void decode_float_mul(Decoder& decoder);
void decode_float_fma(Decoder& decoder);
void decode_float_div(Decoder& decoder);
void decode_float_neg(Decoder& decoder);
void decode_float_abs(Decoder& decoder);
void decode_float_min(Decoder& decoder);
void decode_float_max(Decoder& decoder);

// exec/half.cpp: f16, bf16, and two of them
void decode_half_add(Decoder& decoder);
void decode_half_sub(Decoder& decoder);
void decode_half_mul(Decoder& decoder);
void decode_half_fma(Decoder& decoder);
void decode_half_neg(Decoder& decoder);
void decode_half_abs(Decoder& decoder);
void decode_half_min(Decoder& decoder);
void decode_half_max(Decoder& decoder);

}  // namespace vgpu
