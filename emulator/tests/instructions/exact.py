"""Arithmetic on number formats with Python's fractions: every result exact, then rounded once as asked."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np


@dataclass(frozen=True)
class Format:
    """A binary floating-point format."""

    exponent_bits: int
    mantissa_bits: int
    has_infinity: bool = True

    @property
    def bias(self) -> int:
        return (1 << (self.exponent_bits - 1)) - 1

    @property
    def sign(self) -> int:
        return 1 << (self.exponent_bits + self.mantissa_bits)

    @property
    def infinity(self) -> int:
        """Its bits; those of the NaN where there is none."""
        ones = (1 << self.exponent_bits) - 1
        return ones << self.mantissa_bits if self.has_infinity else self.sign - 1

    @property
    def largest(self) -> int:
        return self.infinity - 1


F16, BF16, F32, F64 = Format(5, 10), Format(8, 7), Format(8, 23), Format(11, 52)
TF32, E4M3, E5M2 = Format(8, 10), Format(4, 3, has_infinity=False), Format(5, 2)

NAN, INFINITY = "nan", "inf"


@dataclass(frozen=True)
class Value:
    """A sign, and a magnitude: a Fraction, INFINITY or NAN."""

    negative: bool
    magnitude: Fraction | str

    @property
    def is_nan(self) -> bool:
        return self.magnitude == NAN

    @property
    def is_infinite(self) -> bool:
        return self.magnitude == INFINITY

    @property
    def is_zero(self) -> bool:
        return self.magnitude == 0

    @property
    def number(self) -> Fraction:
        assert isinstance(self.magnitude, Fraction)
        return -self.magnitude if self.negative else self.magnitude


A_NAN = Value(False, NAN)


def decode(bits: int, form: Format) -> Value:
    """The value of some bits."""
    bits = int(bits)
    negative, magnitude = bool(bits & form.sign), bits & (form.sign - 1)
    exponent, mantissa = magnitude >> form.mantissa_bits, magnitude & ((1 << form.mantissa_bits) - 1)
    if form.has_infinity and magnitude >= form.infinity:
        return Value(negative, INFINITY if magnitude == form.infinity else NAN)
    if not form.has_infinity and magnitude == form.infinity:
        return A_NAN
    if exponent == 0:
        return Value(negative, Fraction(mantissa) * Fraction(2) ** (1 - form.bias - form.mantissa_bits))
    significand = mantissa + (1 << form.mantissa_bits)
    return Value(negative, Fraction(significand) * Fraction(2) ** (exponent - form.bias - form.mantissa_bits))


def floor_log2(x: Fraction) -> int:
    """The exponent of the highest bit of a positive number."""
    e = x.numerator.bit_length() - x.denominator.bit_length()
    return e if x >= Fraction(2) ** e else e - 1


def round_to_integer(x: Fraction, mode: str, negative: bool) -> int:
    """A magnitude, rounded: rn, rna, rz, rm, rp."""
    low = x.numerator // x.denominator
    rest = x - low
    if rest == 0:
        return low
    half = Fraction(1, 2)
    up = {
        "rn": rest > half or (rest == half and low % 2 == 1),
        "rna": rest >= half,
        "rz": False,
        "rm": negative,
        "rp": not negative,
    }[mode]
    return low + up


def encode(value: Value, form: Format, mode: str = "rn", *, nan: int = 0, saturate: bool = False) -> int:
    """The bits of a value in a format; `nan` are those of its NaN."""
    if value.is_nan:
        return nan
    sign = form.sign if value.negative else 0
    inwards = mode == "rz" or (mode == "rm" and not value.negative) or (mode == "rp" and value.negative)
    if value.is_infinite:
        return sign | (form.largest if saturate else form.infinity)
    x = abs(value.number)
    if x == 0:
        return sign
    last = max(floor_log2(x), 1 - form.bias) - form.mantissa_bits
    significand = round_to_integer(x / Fraction(2) ** last, mode, value.negative)
    # The hidden bit of the significand adds one to the exponent field below it.
    bits = ((last + form.mantissa_bits + form.bias - 1) << form.mantissa_bits) + significand
    if bits > form.largest:
        bits = form.largest if saturate or inwards else form.infinity
    return sign | bits


def add(a: Value, b: Value, mode: str = "rn") -> Value:
    """a + b. The rounding matters for the sign of a zero."""
    if a.is_nan or b.is_nan or (a.is_infinite and b.is_infinite and a.negative != b.negative):
        return A_NAN
    if a.is_infinite or b.is_infinite:
        return a if a.is_infinite else b
    total = a.number + b.number
    if total == 0:
        both = a.is_zero and b.is_zero and a.negative == b.negative
        return Value(a.negative if both else mode == "rm", Fraction(0))
    return Value(total < 0, abs(total))


def negate(a: Value) -> Value:
    """−a."""
    return Value(not a.negative, a.magnitude)


def multiply(a: Value, b: Value) -> Value:
    """a · b."""
    negative = a.negative != b.negative
    if a.is_nan or b.is_nan or (a.is_infinite and b.is_zero) or (a.is_zero and b.is_infinite):
        return A_NAN
    if a.is_infinite or b.is_infinite:
        return Value(negative, INFINITY)
    return Value(negative, abs(a.number * b.number))


def divide(a: Value, b: Value) -> Value:
    """a / b."""
    negative = a.negative != b.negative
    if a.is_nan or b.is_nan or (a.is_infinite and b.is_infinite) or (a.is_zero and b.is_zero):
        return A_NAN
    if a.is_infinite or b.is_zero:
        return Value(negative, INFINITY)
    if b.is_infinite:
        return Value(negative, Fraction(0))
    return Value(negative, abs(a.number / b.number))


def square_root(a: Value) -> Value:
    """√a, to some 160 bits below the last place of any format, and never exactly a tie that it is not."""
    if a.is_nan or a.is_zero:
        return a
    if a.negative:
        return A_NAN
    if a.is_infinite:
        return a
    scale = 700
    scaled = a.number * Fraction(4) ** scale
    whole = scaled.numerator // scaled.denominator
    root = math.isqrt(whole)
    exact = root * root == scaled
    return Value(False, (Fraction(root) + (0 if exact else Fraction(1, 3))) / Fraction(2) ** scale)


def flush(value: Value, form: Format) -> Value:
    """.ftz: a subnormal becomes a zero of its sign."""
    if value.is_nan or value.is_infinite or abs(value.number) >= Fraction(2) ** (1 - form.bias):
        return value
    return Value(value.negative, Fraction(0))


def clamp_to_one(value: Value) -> Value:
    """.sat."""
    if value.is_nan or value.negative:
        return Value(False, Fraction(0))
    return Value(False, Fraction(1)) if value.is_infinite or value.number > 1 else value


def relu(value: Value) -> Value:
    """.relu."""
    return Value(False, Fraction(0)) if value.negative and not value.is_nan else value


def is_nan(bits: np.ndarray, form: Format) -> np.ndarray:
    """Which bits are a NaN's."""
    magnitude = bits & bits.dtype.type(form.sign - 1)
    return magnitude > form.infinity if form.has_infinity else magnitude == form.infinity


def interesting(form: Format, seed: int = 0, more: int = 8) -> list[int]:
    """Bits of zeros, subnormals, powers of two and their neighbours, the largest, infinity, NaN, and random numbers."""
    one = form.bias << form.mantissa_bits
    ulp = 1 << form.mantissa_bits
    positive = [
        0,
        1,
        2,
        ulp >> 1,
        ulp - 1,
        ulp,
        ulp + 1,
        one - ulp,
        one - 1,
        one,
        one + 1,
        one + (ulp >> 1),
        one + ulp,
        one + ulp + (ulp >> 1) + 1,
        one + form.mantissa_bits * ulp,
        one + form.mantissa_bits * ulp + 1,
        form.largest - 1,
        form.largest,
        form.infinity,
    ]
    if form.has_infinity:
        positive += [form.infinity + 1, form.infinity + (ulp >> 1)]
    random = np.random.default_rng(seed)
    positive += [int(x) for x in random.integers(0, form.infinity, more)]
    positive += [one + int(x) for x in random.integers(-4 * ulp, 4 * ulp, more)]
    return sorted({x for p in positive for x in (p, p | form.sign)})
