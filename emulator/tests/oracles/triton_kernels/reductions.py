"""Kernels that combine elements: reductions, scans, sorts, histograms, softmax, norms, atomics, programs in order."""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def _combine_max(a, b):
    return tl.maximum(a, b)


@triton.jit
def _combine_affine(a0, b0, a1, b1):
    """Composition of x -> a0 x + b0, then x -> a1 x + b1."""
    return a0 * a1, b0 * a1 + b1


@triton.jit
def _combine_welford(mean0, m0, count0, mean1, m1, count1):
    count = count0 + count1
    delta = mean1 - mean0
    weight = tl.where(count == 0.0, 0.0, count1 / count)
    return mean0 + delta * weight, m0 + m1 + delta * delta * count0 * weight, count


@triton.jit
def reduce_2d(x, out, ROWS: tl.constexpr, COLUMNS: tl.constexpr, AXIS: tl.constexpr, OP: tl.constexpr):
    tile = tl.load(x + tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :])
    if OP == "sum":
        result = tl.sum(tile, AXIS)
    elif OP == "max":
        result = tl.max(tile, AXIS)
    elif OP == "min":
        result = tl.min(tile, AXIS)
    elif OP == "argmax":
        result = tl.argmax(tile, AXIS)
    elif OP == "argmin":
        result = tl.argmin(tile, AXIS, tie_break_left=True)
    elif OP == "xor":
        result = tl.xor_sum(tile, AXIS)
    else:
        tl.static_assert(OP == "custom")
        result = tl.reduce(tile, AXIS, _combine_max)
    tl.store(out + tl.arange(0, ROWS if AXIS == 1 else COLUMNS), result)


@triton.jit
def reduce_all(x, out, n, BLOCK: tl.constexpr):
    """One sum per program."""
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + tl.program_id(0), tl.sum(tl.load(x + offsets, mask=offsets < n, other=0), 0))


@triton.jit
def scan_2d(x, out, ROWS: tl.constexpr, COLUMNS: tl.constexpr, AXIS: tl.constexpr, OP: tl.constexpr):
    offsets = tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    tile = tl.load(x + offsets)
    if OP == "sum":
        result = tl.cumsum(tile, AXIS)
    elif OP == "sum_reverse":
        result = tl.cumsum(tile, AXIS, reverse=True)
    elif OP == "prod":
        result = tl.cumprod(tile, AXIS)
    else:
        tl.static_assert(OP == "max")
        result = tl.associative_scan(tile, AXIS, _combine_max)
    tl.store(out + offsets, result)


@triton.jit
def linear_recurrence(a, b, out, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Out[t] = a[t] out[t - 1] + b[t] along rows, by a scan over pairs."""
    offsets = tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    _, result = tl.associative_scan((tl.load(a + offsets), tl.load(b + offsets)), 1, _combine_affine)
    tl.store(out + offsets, result)


@triton.jit
def welford(x, mean, variance, COLUMNS: tl.constexpr):
    """Mean and variance of a row in one pass, by a reduction over triples."""
    offsets = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    tile = tl.load(x + offsets)
    zeros = tl.zeros((COLUMNS,), tl.float32)
    m, m2, count = tl.reduce((tile, zeros, zeros + 1.0), 0, _combine_welford)
    tl.store(mean + tl.program_id(0), m)
    tl.store(variance + tl.program_id(0), m2 / count)


@triton.jit
def sort_rows(x, out, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DESCENDING: tl.constexpr):
    offsets = tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    tl.store(out + offsets, tl.sort(tl.load(x + offsets), 1, DESCENDING))


@triton.jit
def topk_rows(x, out, ROWS: tl.constexpr, COLUMNS: tl.constexpr, K: tl.constexpr):
    r = tl.arange(0, ROWS)[:, None]
    tile = tl.load(x + r * COLUMNS + tl.arange(0, COLUMNS)[None, :])
    tl.store(out + r * K + tl.arange(0, K)[None, :], tl.topk(tile, K))


@triton.jit
def histogram_block(x, out, n, BLOCK: tl.constexpr, BINS: tl.constexpr):
    """tl.histogram: matches within warps and atomics in shared memory; then one atomic per bin."""
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < n
    counts = tl.histogram(tl.load(x + offsets, mask=mask, other=0), BINS, mask=mask)
    tl.atomic_add(out + tl.arange(0, BINS), counts)


@triton.jit
def histogram_atomic(x, weight, counts, sums, n, BLOCK: tl.constexpr):
    """Counts and weight sums per bin by global atomics."""
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < n
    bins = tl.load(x + offsets, mask=mask, other=0)
    tl.atomic_add(counts + bins, 1, mask=mask)
    tl.atomic_add(sums + bins, tl.load(weight + offsets, mask=mask), mask=mask, sem="relaxed")


@triton.jit
def softmax(x, out, columns, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    offsets = tl.arange(0, BLOCK)
    mask = offsets < columns
    v = tl.load(x + row * columns + offsets, mask=mask, other=float("-inf")).to(tl.float32)
    e = tl.exp(v - tl.max(v, 0))
    tl.store(out + row * columns + offsets, (e / tl.sum(e, 0)).to(out.dtype.element_ty), mask=mask)


@triton.jit
def layer_norm(x, weight, bias, out, mean, rstd, columns, epsilon, BLOCK: tl.constexpr):
    """Two passes over a row that may be longer than the block."""
    row = tl.program_id(0)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, columns, BLOCK):
        offsets = start + tl.arange(0, BLOCK)
        total += tl.load(x + row * columns + offsets, mask=offsets < columns, other=0.0).to(tl.float32)
    m = tl.sum(total, 0) / columns
    square = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, columns, BLOCK):
        offsets = start + tl.arange(0, BLOCK)
        v = tl.load(x + row * columns + offsets, mask=offsets < columns, other=0.0).to(tl.float32)
        d = tl.where(offsets < columns, v - m, 0.0)
        square += d * d
    r = tl.rsqrt(tl.sum(square, 0) / columns + epsilon)
    tl.store(mean + row, m)
    tl.store(rstd + row, r)
    for start in range(0, columns, BLOCK):
        offsets = start + tl.arange(0, BLOCK)
        mask = offsets < columns
        v = tl.load(x + row * columns + offsets, mask=mask, other=0.0).to(tl.float32)
        y = (v - m) * r * tl.load(weight + offsets, mask=mask) + tl.load(bias + offsets, mask=mask)
        tl.store(out + row * columns + offsets, y.to(out.dtype.element_ty), mask=mask)


@triton.jit
def atomic_operators(x, target, previous, n, BLOCK: tl.constexpr):
    """Seven integer atomics, each on its own word of `target`; `previous` gets what atomic_add returned."""
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < n
    v = tl.load(x + offsets, mask=mask, other=0)
    zero = offsets * 0
    tl.store(previous + offsets, tl.atomic_add(target + zero, zero + 1, mask=mask), mask=mask)
    tl.atomic_max(target + 1 + zero, v, mask=mask)
    tl.atomic_min(target + 2 + zero, v, mask=mask)
    tl.atomic_and(target + 3 + zero, v, mask=mask)
    tl.atomic_or(target + 4 + zero, v, mask=mask)
    tl.atomic_xor(target + 5 + zero, v, mask=mask)
    tl.atomic_xchg(target + 6 + zero, v, mask=mask)


@triton.jit
def atomic_float_max(x, target, n, BLOCK: tl.constexpr):
    """Max and min of floats: Triton makes them of signed and unsigned integer atomics."""
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < n
    v = tl.load(x + offsets, mask=mask, other=0.0)
    tl.atomic_max(target + offsets * 0, v, mask=mask)
    tl.atomic_min(target + 1 + offsets * 0, v, mask=mask)


@triton.jit
def atomic_rows(x, index, out, COLUMNS: tl.constexpr):
    """Out[index[r], :] += x[r, :] in the dtype of `out` (fp16 and bf16: packed pairs where the chip has them)."""
    row = tl.program_id(0)
    offsets = tl.arange(0, COLUMNS)
    tl.atomic_add(out + tl.load(index + row) * COLUMNS + offsets, tl.load(x + row * COLUMNS + offsets))


@triton.jit
def locked_sum(x, out, lock, COLUMNS: tl.constexpr):
    """Sum of rows: every program adds its row under a spin lock made of compare-and-swap and exchange."""
    offsets = tl.arange(0, COLUMNS)
    v = tl.load(x + tl.program_id(0) * COLUMNS + offsets)
    while tl.atomic_cas(lock, 0, 1) == 1:
        pass
    tl.store(out + offsets, tl.load(out + offsets) + v)
    tl.debug_barrier()
    tl.atomic_xchg(lock, 0)


@triton.jit
def last_program(x, partial, counter, out, n, BLOCK: tl.constexpr, PROGRAMS: tl.constexpr):
    """Every program leaves a partial sum; the one that counts last adds them up."""
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(partial + tl.program_id(0), tl.sum(tl.load(x + offsets, mask=offsets < n, other=0.0), 0))
    tl.debug_barrier()
    if tl.atomic_add(counter, 1, sem="acq_rel") == PROGRAMS - 1:
        tl.store(out, tl.sum(tl.load(partial + tl.arange(0, PROGRAMS), volatile=True), 0))


@triton.jit
def relay(x, out, flags, COLUMNS: tl.constexpr):
    """Running sum of rows: each program waits for the flag of the one before, then raises its own."""
    row = tl.program_id(0)
    offsets = tl.arange(0, COLUMNS)
    total = tl.load(x + row * COLUMNS + offsets)
    if row > 0:
        tl.atomic_poll(flags + row - 1, 1, sem="acquire")
        total += tl.load(out + (row - 1) * COLUMNS + offsets)
    tl.store(out + row * COLUMNS + offsets, total)
    tl.debug_barrier()
    tl.atomic_store(flags + row, 1, sem="release")


@triton.jit
def dependent_double(x, out, n, BLOCK: tl.constexpr):
    """Twice x; the next launch may start before this one ends, and waits for it before it reads."""
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    gdc_launch_dependents()
    gdc_wait()
    tl.store(out + offsets, 2 * tl.load(x + offsets, mask=offsets < n), mask=offsets < n)
