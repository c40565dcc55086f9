// Functions of one value: ex2 lg2 sin cos tanh rcp sqrt rsqrt.
//
// PTX bounds the error of .approx only. Here the function is computed in double and rounded once, so that results do
// not depend on a GPU's tables; flushing and special values are as PTX says.
#include <array>
#include <limits>

#include "exec/half_lanes.h"

namespace vgpu {
namespace {

// Sums of polynomials, highest term first.
template <size_t kTerms>
[[gnu::always_inline]] inline double polynomial(const std::array<double, kTerms>& coefficients, double x) {
  double sum = coefficients[kTerms - 1];
  for (size_t k = kTerms - 1; k-- > 0;) sum = sum * x + coefficients[k];
  return sum;
}

constexpr double kLn2 = 0.693147180559945309417;

// ln(2)^k / k!
constexpr std::array<double, 13> kExp2Terms = [] {
  std::array<double, 13> terms{1.0};
  for (size_t k = 1; k < terms.size(); ++k) terms[k] = terms[k - 1] * kLn2 / static_cast<double>(k);
  return terms;
}();
// log2 of (1 + s) / (1 − s), divided by s, in powers of s²: 2 / ln(2) / (2k + 1)
constexpr std::array<double, 12> kLog2Terms = [] {
  std::array<double, 12> terms{};
  for (size_t k = 0; k < terms.size(); ++k) terms[k] = 2.0 / kLn2 / static_cast<double>(2 * k + 1);
  return terms;
}();

// To some 2^-50, for whatever may become a float. Libraries are as exact, but do not work on many lanes at once.
[[gnu::always_inline]] inline double exp2_of(double x) {
  const double bounded = std::min(std::max(x, -300.0), 300.0);
  // Adding it leaves the nearest integer in the lowest bits.
  constexpr double kRound = 0x1.8p52;
  const double rounded = bounded + kRound;
  const double part = bounded - (rounded - kRound);
  const double power = double_of(bits_of(polynomial(kExp2Terms, part)) + (bits_of(rounded) << 52));
  return x != x ? x : power;
}

// x is a float, so that it is no subnormal double.
[[gnu::always_inline]] inline double log2_of(double x) {
  constexpr uint64_t kRootOfHalf = 0x3fe6a09e667f3bcd;
  const uint64_t u = bits_of(x);
  // The mantissa is moved to between √½ and √2.
  const uint64_t exponent = (u - kRootOfHalf) & 0xfff0000000000000;
  const double mantissa = double_of(u - exponent);
  const double s = (mantissa - 1) / (mantissa + 1);
  // The exponent as a double, by way of the lowest bits of one, where it is biased to be positive.
  const double power = double_of(0x4330000000000000 + ((exponent + 0x4000000000000000) >> 52)) - (0x1p52 + 1024);
  const double logarithm = polynomial(kLog2Terms, s * s) * s + power;
  const double infinity = std::numeric_limits<double>::infinity();
  const double special = x == 0 ? -infinity : x == infinity ? x : std::numeric_limits<double>::quiet_NaN();
  return x > 0 && x < infinity ? logarithm : special;
}

[[gnu::always_inline]] inline double tanh_of(double x) {
  const double square = x * x;
  const double near_zero = x * (1 + square * (-1.0 / 3 + square * (2.0 / 15)));
  const double away = 1 - 2 / (exp2_of(std::abs(x) * (2 / kLn2)) + 1);
  return std::abs(x) < 0x1p-8 ? near_zero : std::copysign(away, x);
}

struct Exp2 {
  static constexpr int kSources = 1;
  [[gnu::always_inline]] static float apply(float x) { return static_cast<float>(exp2_of(x)); }
};
struct Log2 {
  static constexpr int kSources = 1;
  [[gnu::always_inline]] static float apply(float x) { return static_cast<float>(log2_of(x)); }
};
struct Tanh {
  static constexpr int kSources = 1;
  [[gnu::always_inline]] static float apply(float x) { return static_cast<float>(tanh_of(x)); }
};
struct Sine {
  static constexpr int kSources = 1;
  static float apply(float x) { return static_cast<float>(std::sin(static_cast<double>(x))); }
};
struct Cosine {
  static constexpr int kSources = 1;
  static float apply(float x) { return static_cast<float>(std::cos(static_cast<double>(x))); }
};
struct Reciprocal {
  static constexpr int kSources = 1;
  template <class T>
  static T apply(T x) {
    return T{1} / x;
  }
};
struct SquareRoot {
  static constexpr int kSources = 1;
  template <class T>
  static T apply(T x) {
    return std::sqrt(x);
  }
};
struct ReciprocalRoot {
  static constexpr int kSources = 1;
  static float apply(float x) { return static_cast<float>(1.0 / std::sqrt(static_cast<double>(x))); }
  static double apply(double x) { return 1.0 / std::sqrt(x); }
};

// .approx.ftz.f64 works on the upper 32 bits, and gives no more.
constexpr uint64_t kUpper = 0xffffffff00000000;
double flush_upper(double x) {
  const uint64_t u = bits_of(x) & kUpper;
  return double_of(u & Double::kInfinity ? u : u & Double::kSign);
}
template <class Op>
void upper_half(Warp& warp, const Instruction& i) {
  const double* a = warp.f64(i.slot[1]);
  write_lanes(warp.active, warp.f64(i.slot[0]), [=](uint32_t lane) {
    const double x = a[lane] != a[lane] ? a[lane] : flush_upper(a[lane]);
    return flush_upper(Op::apply(x));
  });
}

// .approx{.ftz}.f32
template <class Op, bool kVector>
void decode_approximate_f32(Decoder& decoder, bool ftz, const TypeInfo& type) {
  if (type.name != "f32") decoder.unknown("it has no type ." + type.name);
  decode_operands(decoder, type, 1, InstructionClass::kFloat);
  decoder.out.execute = ftz ? &float_operation<float, Op, true, false, false, kVector>
                            : &float_operation<float, Op, false, false, false, kVector>;
}

bool is_half(const TypeInfo& type) { return type.name.find("f16") != std::string::npos; }

template <class Op, bool kVector>
void decode_approximate(Decoder& decoder) {
  if (!decoder.take("approx")) decoder.unknown("it needs .approx");
  const bool ftz = decoder.take("ftz");
  decode_approximate_f32<Op, kVector>(decoder, ftz, decoder.take_type());
}

void decode_ex2(Decoder& decoder) {
  if (!decoder.take("approx")) decoder.unknown("it needs .approx");
  const bool ftz = decoder.take("ftz");
  const TypeInfo type = decoder.take_type();
  if (!is_half(type)) return decode_approximate_f32<Exp2, true>(decoder, ftz, type);
  const HalfType half = half_type(decoder, type);
  if (half.is_bfloat != ftz) decoder.unknown(".ftz is for .bf16, which needs it, and not for .f16");
  decode_operands(decoder, type, 1, InstructionClass::kFloat);
  decoder.out.execute =
      ftz ? half_execute<Exp2, true, Clamp::kNone>(half) : half_execute<Exp2, false, Clamp::kNone>(half);
}

void decode_tanh(Decoder& decoder) {
  if (!decoder.take("approx")) decoder.unknown("it needs .approx");
  const TypeInfo type = decoder.take_type();
  if (!is_half(type)) return decode_approximate_f32<Tanh, true>(decoder, false, type);
  decode_operands(decoder, type, 1, InstructionClass::kFloat);
  decoder.out.execute = half_execute<Tanh, false, Clamp::kNone>(half_type(decoder, type));
}

// rcp, sqrt: approximate, or rounded as the instruction says.
template <class Op, bool kUpperHalf>
void decode_rounded(Decoder& decoder) {
  if (!decoder.take("approx")) return decode_float_operation<Op>(decoder, false);
  const bool ftz = decoder.take("ftz");
  const TypeInfo type = decoder.take_type();
  if (type.name != "f64") return decode_approximate_f32<Op, true>(decoder, ftz, type);
  if (!kUpperHalf || !ftz) decoder.unknown("it has no such form for .f64");
  decode_operands(decoder, type, 1, InstructionClass::kFloat);
  decoder.out.execute = &upper_half<Op>;
}

void decode_rsqrt(Decoder& decoder) {
  if (!decoder.take("approx")) decoder.unknown("it needs .approx");
  const bool ftz = decoder.take("ftz");
  const TypeInfo type = decoder.take_type();
  if (type.name != "f64") return decode_approximate_f32<ReciprocalRoot, true>(decoder, ftz, type);
  decode_operands(decoder, type, 1, InstructionClass::kFloat);
  decoder.out.execute =
      ftz ? &upper_half<ReciprocalRoot> : &float_operation<double, ReciprocalRoot, false, false, false>;
}

const RegisterDecoders kRegistered({
    {"ex2", decode_ex2},
    {"lg2", decode_approximate<Log2, true>},
    {"sin", decode_approximate<Sine, false>},
    {"cos", decode_approximate<Cosine, false>},
    {"tanh", decode_tanh},
    {"rcp", decode_rounded<Reciprocal, true>},
    {"sqrt", decode_rounded<SquareRoot, false>},
    {"rsqrt", decode_rsqrt},
});

}  // namespace
}  // namespace vgpu
