"""Fused attention, forward: two products per tile with an online softmax between them."""

import triton
import triton.language as tl


@triton.jit
def _tile(q, k, v, best, total, output, scale, rows, columns, length, CAUSAL: tl.constexpr):
    scores = tl.dot(q, k.T) * scale
    keep = columns[None, :] < length
    if CAUSAL:
        keep = keep & (columns[None, :] <= rows[:, None])
    scores = tl.where(keep, scores, float("-inf"))
    new_best = tl.maximum(best, tl.max(scores, 1))
    p = tl.exp2(scores - new_best[:, None])
    shrink = tl.exp2(best - new_best)
    total = total * shrink + tl.sum(p, 1)
    output = tl.dot(p.to(v.dtype), v, output * shrink[:, None])
    return new_best, total, output


@triton.jit
def forward(
    q, k, v, out, lse, length, scale, D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, CAUSAL: tl.constexpr
):
    """One head per program along axis 1; `scale` includes log2(e); `lse` gets the log2 of the sum."""
    start = tl.program_id(0) * BM
    head = tl.program_id(1) * length * D
    d = tl.arange(0, D)
    m = start + tl.arange(0, BM)
    q_tile = tl.load(q + head + m[:, None] * D + d[None, :], mask=m[:, None] < length, other=0.0)
    best = tl.full((BM,), float("-inf"), tl.float32)
    total = tl.zeros((BM,), tl.float32)
    output = tl.zeros((BM, D), tl.float32)
    end = tl.minimum(start + BM, length) if CAUSAL else length
    for begin in range(0, end, BN):
        n = begin + tl.arange(0, BN)
        k_tile = tl.load(k + head + n[:, None] * D + d[None, :], mask=n[:, None] < length, other=0.0)
        v_tile = tl.load(v + head + n[:, None] * D + d[None, :], mask=n[:, None] < length, other=0.0)
        best, total, output = _tile(q_tile, k_tile, v_tile, best, total, output, scale, m, n, length, CAUSAL)
    mask = m < length
    tl.store(lse + tl.program_id(1) * length + m, best + tl.log2(total), mask=mask)
    output = output / total[:, None]
    tl.store(out + head + m[:, None] * D + d[None, :], output.to(out.dtype.element_ty), mask=mask[:, None])


@triton.jit
def forward_tma(q, k, v, out, length, scale, D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, CAUSAL: tl.constexpr):
    """Descriptors of [heads, length, D]."""
    start = tl.program_id(0) * BM
    head = tl.program_id(1)
    m = start + tl.arange(0, BM)
    q_tile = q.load([head, start, 0]).reshape(BM, D)
    best = tl.full((BM,), float("-inf"), tl.float32)
    total = tl.zeros((BM,), tl.float32)
    output = tl.zeros((BM, D), tl.float32)
    end = tl.minimum(start + BM, length) if CAUSAL else length
    for begin in range(0, end, BN):
        n = begin + tl.arange(0, BN)
        k_tile = k.load([head, begin, 0]).reshape(BN, D)
        v_tile = v.load([head, begin, 0]).reshape(BN, D)
        best, total, output = _tile(q_tile, k_tile, v_tile, best, total, output, scale, m, n, length, CAUSAL)
    out.store([head, start, 0], (output / total[:, None]).to(out.dtype).reshape(1, BM, D))


@triton.jit
def forward_roles(
    q, k, v, out, length, scale, D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, CAUSAL: tl.constexpr
):
    """Warp groups in roles: one loads, two take half of the rows each. `length` is a multiple of BM."""
    rows = tl.num_programs(1) * length
    q_map = tl.make_tensor_descriptor(q, [rows, D], [D, 1], [BM, D])
    k_map = tl.make_tensor_descriptor(k, [rows, D], [D, 1], [BN, D])
    v_map = tl.make_tensor_descriptor(v, [rows, D], [D, 1], [BN, D])
    out_map = tl.make_tensor_descriptor(out, [rows, D], [D, 1], [BM, D])
    start = tl.program_id(0) * BM
    first = tl.program_id(1) * length
    m = start + tl.arange(0, BM)
    q_tile = q_map.load([first + start, 0])
    best = tl.full((BM,), float("-inf"), tl.float32)
    total = tl.zeros((BM,), tl.float32)
    output = tl.zeros((BM, D), tl.float32)
    end = tl.minimum(start + BM, length) if CAUSAL else length
    for begin in tl.range(0, end, BN, warp_specialize=True):
        n = begin + tl.arange(0, BN)
        k_tile = k_map.load([first + begin, 0])
        v_tile = v_map.load([first + begin, 0])
        best, total, output = _tile(q_tile, k_tile, v_tile, best, total, output, scale, m, n, length, CAUSAL)
    out_map.store([first + start, 0], (output / total[:, None]).to(out.dtype.element_ty))
