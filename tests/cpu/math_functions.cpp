// What tests/cpu/test_math.py calls: the functions of math.h and numeric.h over arrays, compiled with the flags of one
// instruction set.
#define MOE_ISA under_test
#include "cpu/vectorized/math.h"

namespace f = moe::cpu::under_test;

#define OVER_ARRAY(name, From, To, expression)                                                       \
  extern "C" __attribute__((visibility("default"))) void name(const From* x, To* y, int64_t count) { \
    for (int64_t i = 0; i < count; ++i) y[i] = expression;                                           \
  }

OVER_ARRAY(exp_of, float, float, f::exp(x[i]))
OVER_ARRAY(exp_of_negative_of, float, float, f::exp_of_negative(x[i]))
OVER_ARRAY(sigmoid_of, float, float, f::sigmoid(x[i]))
OVER_ARRAY(softplus_of, float, float, f::softplus(x[i]))
OVER_ARRAY(log1p_of, float, float, f::log1p_of_unit(x[i]))
OVER_ARRAY(tanh_of, float, float, f::tanh(x[i]))
OVER_ARRAY(erf_of, float, float, f::erf(x[i]))
OVER_ARRAY(from_bfloat16, f::bf16, float, f::to_acc(x[i]))
OVER_ARRAY(from_float16, f::fp16, float, f::to_acc(x[i]))
OVER_ARRAY(to_bfloat16, float, f::bf16, f::from_acc<f::bf16>(x[i]))
OVER_ARRAY(to_float16, float, f::fp16, f::from_acc<f::fp16>(x[i]))
