"""Kernels that compute every element on its own: arithmetic, activations, casts, integers, random numbers, moves."""

import triton
import triton.language as tl
from triton.language.extra import libdevice


@triton.jit
def add(x, y, out, n, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < n
    tl.store(out + offsets, tl.load(x + offsets, mask=mask) + tl.load(y + offsets, mask=mask), mask=mask)


@triton.jit
def swiglu(x, gate, out, n, BLOCK: tl.constexpr):
    """Silu(gate) * x, computed in fp32."""
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < n
    g = tl.load(gate + offsets, mask=mask, other=0.0).to(tl.float32)
    value = tl.load(x + offsets, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + offsets, (g * tl.sigmoid(g) * value).to(out.dtype.element_ty), mask=mask)


@triton.jit
def gelu_pair(x, exact, approximate, n, BLOCK: tl.constexpr):
    """GELU by erf, and by tanh."""
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < n
    v = tl.load(x + offsets, mask=mask, other=0.0).to(tl.float32)
    tl.store(exact + offsets, (0.5 * v * (1.0 + tl.erf(v * 0.7071067811865476))).to(exact.dtype.element_ty), mask=mask)
    inner = 0.7978845608028654 * (v + 0.044715 * v * v * v)
    smooth = 0.5 * v * (1.0 + libdevice.tanh(inner))
    tl.store(approximate + offsets, smooth.to(approximate.dtype.element_ty), mask=mask)


@triton.jit
def unary_functions(x, out, n, BLOCK: tl.constexpr):
    """Twelve functions of positive x, one row of `out` each."""
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < n
    v = tl.load(x + offsets, mask=mask, other=1.0)
    tl.store(out + 0 * n + offsets, tl.exp(v), mask=mask)
    tl.store(out + 1 * n + offsets, tl.exp2(v), mask=mask)
    tl.store(out + 2 * n + offsets, tl.log(v), mask=mask)
    tl.store(out + 3 * n + offsets, tl.log2(v), mask=mask)
    tl.store(out + 4 * n + offsets, tl.sin(v), mask=mask)
    tl.store(out + 5 * n + offsets, tl.cos(v), mask=mask)
    tl.store(out + 6 * n + offsets, tl.sqrt(v), mask=mask)
    tl.store(out + 7 * n + offsets, tl.sqrt_rn(v), mask=mask)
    tl.store(out + 8 * n + offsets, tl.rsqrt(v), mask=mask)
    tl.store(out + 9 * n + offsets, tl.floor(v), mask=mask)
    tl.store(out + 10 * n + offsets, tl.ceil(v), mask=mask)
    tl.store(out + 11 * n + offsets, 1.0 / v, mask=mask)


@triton.jit
def libdevice_functions(x, y, out, n, BLOCK: tl.constexpr):
    """Twelve functions of libdevice, one row of `out` each."""
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < n
    v = tl.load(x + offsets, mask=mask, other=1.0)
    w = tl.load(y + offsets, mask=mask, other=1.0)
    tl.store(out + 0 * n + offsets, libdevice.pow(v, w), mask=mask)
    tl.store(out + 1 * n + offsets, libdevice.atan2(v, w), mask=mask)
    tl.store(out + 2 * n + offsets, libdevice.fmod(v, w), mask=mask)
    tl.store(out + 3 * n + offsets, libdevice.hypot(v, w), mask=mask)
    tl.store(out + 4 * n + offsets, libdevice.log1p(v), mask=mask)
    tl.store(out + 5 * n + offsets, libdevice.expm1(v), mask=mask)
    tl.store(out + 6 * n + offsets, libdevice.tgamma(v), mask=mask)
    tl.store(out + 7 * n + offsets, libdevice.cbrt(v), mask=mask)
    tl.store(out + 8 * n + offsets, libdevice.rint(v), mask=mask)
    tl.store(out + 9 * n + offsets, libdevice.round(v), mask=mask)
    tl.store(out + 10 * n + offsets, libdevice.erfc(v), mask=mask)
    tl.store(out + 11 * n + offsets, libdevice.sinpi(v), mask=mask)


@triton.jit
def binary_operators(x, y, out, n, BLOCK: tl.constexpr):
    """Ten operators of two floats, one row of `out` each."""
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < n
    v = tl.load(x + offsets, mask=mask, other=1.0)
    w = tl.load(y + offsets, mask=mask, other=1.0)
    tl.store(out + 0 * n + offsets, v - w, mask=mask)
    tl.store(out + 1 * n + offsets, v * w, mask=mask)
    tl.store(out + 2 * n + offsets, v / w, mask=mask)
    tl.store(out + 3 * n + offsets, tl.div_rn(v, w), mask=mask)
    tl.store(out + 4 * n + offsets, tl.minimum(v, w), mask=mask)
    tl.store(out + 5 * n + offsets, tl.maximum(v, w, propagate_nan=tl.PropagateNan.ALL), mask=mask)
    tl.store(out + 6 * n + offsets, tl.where((v < w) | (v == 1.0), v, -tl.abs(w)), mask=mask)
    tl.store(out + 7 * n + offsets, tl.fma(v, w, v), mask=mask)
    tl.store(out + 8 * n + offsets, tl.clamp(v, -0.5, 0.5), mask=mask)
    tl.store(out + 9 * n + offsets, ((v >= w) ^ (v != v)).to(tl.float32), mask=mask)


@triton.jit
def integer_operators(x, y, out, n, BLOCK: tl.constexpr):
    """Sixteen operators of two integers (y is never 0), one row of `out` each."""
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < n
    v = tl.load(x + offsets, mask=mask, other=1)
    w = tl.load(y + offsets, mask=mask, other=1)
    s = (w & 7).to(v.dtype)
    tl.store(out + 0 * n + offsets, v + w, mask=mask)
    tl.store(out + 1 * n + offsets, v - w, mask=mask)
    tl.store(out + 2 * n + offsets, v * w, mask=mask)
    tl.store(out + 3 * n + offsets, v // w, mask=mask)
    tl.store(out + 4 * n + offsets, v % w, mask=mask)
    tl.store(out + 5 * n + offsets, v & w, mask=mask)
    tl.store(out + 6 * n + offsets, v | w, mask=mask)
    tl.store(out + 7 * n + offsets, v ^ w, mask=mask)
    tl.store(out + 8 * n + offsets, v << s, mask=mask)
    tl.store(out + 9 * n + offsets, v >> s, mask=mask)
    tl.store(out + 10 * n + offsets, tl.minimum(v, w), mask=mask)
    tl.store(out + 11 * n + offsets, tl.maximum(v, w), mask=mask)
    tl.store(out + 12 * n + offsets, ~v, mask=mask)
    tl.store(out + 13 * n + offsets, tl.abs(v), mask=mask)
    tl.store(out + 14 * n + offsets, tl.where(v < w, v, w * 3), mask=mask)
    tl.store(out + 15 * n + offsets, (v == w).to(v.dtype) - (v > w).to(v.dtype), mask=mask)


@triton.jit
def bit_functions(x, y, out, n, BLOCK: tl.constexpr):
    """Seven functions on the bits of 32-bit integers, one row of `out` each."""
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < n
    v = tl.load(x + offsets, mask=mask, other=1)
    w = tl.load(y + offsets, mask=mask, other=1)
    tl.store(out + 0 * n + offsets, libdevice.clz(v), mask=mask)
    tl.store(out + 1 * n + offsets, libdevice.popc(v), mask=mask)
    tl.store(out + 2 * n + offsets, libdevice.brev(v), mask=mask)
    tl.store(out + 3 * n + offsets, libdevice.ffs(v), mask=mask)
    high = tl.umulhi(v.to(tl.uint32, bitcast=True), w.to(tl.uint32, bitcast=True))
    tl.store(out + 4 * n + offsets, high.to(tl.int32, bitcast=True), mask=mask)
    tl.store(out + 5 * n + offsets, libdevice.mulhi(v, w), mask=mask)
    tl.store(out + 6 * n + offsets, libdevice.byte_perm(v, w, 0x6140), mask=mask)


@triton.jit
def cast(x, out, n, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < n
    tl.store(out + offsets, tl.load(x + offsets, mask=mask).to(out.dtype.element_ty), mask=mask)


@triton.jit
def random_bits(out, uniform, n, seed, BLOCK: tl.constexpr):
    """Philox 4x32-10 by its counter, and the uniform numbers made of it."""
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < n
    a, b, c, d = tl.randint4x(seed, offsets)
    tl.store(out + 0 * n + offsets, a, mask=mask)
    tl.store(out + 1 * n + offsets, b, mask=mask)
    tl.store(out + 2 * n + offsets, c, mask=mask)
    tl.store(out + 3 * n + offsets, d, mask=mask)
    tl.store(uniform + offsets, tl.rand(seed, offsets), mask=mask)


@triton.jit
def transpose(x, out, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Out = x^T by tiles: a layout conversion through shared memory."""
    r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    c = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    tile = tl.load(x + r[:, None] * columns + c[None, :], mask=(r[:, None] < rows) & (c[None, :] < columns))
    tl.store(out + c[:, None] * rows + r[None, :], tile.T, mask=(c[:, None] < columns) & (r[None, :] < rows))


@triton.jit
def shuffle_elements(x, out, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Permute, reshape, split, join, flip: moves between and within warps; four results, one after another."""
    r = tl.arange(0, ROWS)
    c = tl.arange(0, COLUMNS)
    flat = tl.arange(0, ROWS * COLUMNS)
    tile = tl.load(x + r[:, None] * COLUMNS + c[None, :])
    tl.store(out + c[:, None] * ROWS + r[None, :], tl.permute(tile, (1, 0)))
    out += ROWS * COLUMNS
    even, odd = tl.split(tl.reshape(tile, (ROWS, COLUMNS // 2, 2)))
    half = tl.arange(0, COLUMNS // 2)
    tl.store(out + r[:, None] * (COLUMNS // 2) + half[None, :], even - odd)
    out += ROWS * COLUMNS // 2
    tl.store(out + r[:, None] * COLUMNS + c[None, :], tl.interleave(odd, even))
    out += ROWS * COLUMNS
    tl.store(out + flat, tl.flip(tl.reshape(tile, (ROWS * COLUMNS,)), 0))


@triton.jit
def gather_columns(x, index, out, ROWS: tl.constexpr, COLUMNS: tl.constexpr, AXIS: tl.constexpr):
    """Out[r, c] = x[r, index[r, c]] (axis 1) or x[index[r, c], c] (axis 0)."""
    offsets = tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    tl.store(out + offsets, tl.gather(tl.load(x + offsets), tl.load(index + offsets), AXIS))
