"""The pieces of a mixture-of-experts layer: routing, grouped products over gathered rows, combination."""

import triton
import triton.language as tl


@triton.jit
def route(logits, weights, experts, counts, tokens, EXPERTS: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr):
    """Softmax over experts, the K largest one after another (lowest index on ties), and the histogram of choices."""
    t = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    e = tl.arange(0, EXPERTS)
    mask = t < tokens
    x = tl.load(logits + t[:, None] * EXPERTS + e[None, :], mask=mask[:, None], other=0.0).to(tl.float32)
    p = tl.exp(x - tl.max(x, 1)[:, None])
    p /= tl.sum(p, 1)[:, None]
    for k in tl.static_range(K):
        best, index = tl.max(p, 1, return_indices=True)
        tl.store(weights + t * K + k, best, mask=mask)
        tl.store(experts + t * K + k, index, mask=mask)
        tl.atomic_add(counts + index, 1, mask=mask)
        p = tl.where(e[None, :] == index[:, None], -1.0, p)


@triton.jit
def grouped_matmul(
    x,
    w,
    out,
    row_index,
    offsets,
    N,
    K,
    EXPERTS: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """Out[i] = x[row_index[i]] w[e]^T for the rows i of expert e, offsets[e] <= i < offsets[e + 1].

    Programs walk over all tiles of all experts, as many as there are.
    """
    tile = tl.program_id(0)
    tiles_n = tl.cdiv(N, BN)
    first = 0
    for e in range(EXPERTS):
        begin = tl.load(offsets + e)
        end = tl.load(offsets + e + 1)
        tiles = tl.cdiv(end - begin, BM) * tiles_n
        while tile >= first and tile < first + tiles:
            local = tile - first
            m = begin + local // tiles_n * BM + tl.arange(0, BM)
            n = local % tiles_n * BN + tl.arange(0, BN)
            rows = tl.load(row_index + m, mask=m < end, other=0)
            x_tile = x + rows[:, None] * K + tl.arange(0, BK)[None, :]
            w_tile = w + e.to(tl.int64) * N * K + n[None, :] * K + tl.arange(0, BK)[:, None]
            total = tl.zeros((BM, BN), tl.float32)
            for k in range(0, K, BK):
                a = tl.load(x_tile + k, mask=m[:, None] < end, other=0.0)
                b = tl.load(w_tile + k, mask=n[None, :] < N, other=0.0)
                total = tl.dot(a, b, total)
            mask = (m[:, None] < end) & (n[None, :] < N)
            tl.store(out + m[:, None] * N + n[None, :], total.to(out.dtype.element_ty), mask=mask)
            tile += tl.num_programs(0)
        first += tiles


@triton.jit
def grouped_matmul_tma(
    x, w, out, offsets, N, K, EXPERTS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr
):
    """The same over rows that are already sorted, with a descriptor per expert made by the kernel.

    A store through a descriptor that ends with the expert's rows cannot touch the next expert's.
    """
    tile = tl.program_id(0)
    tiles_n = tl.cdiv(N, BN)
    first = 0
    for e in range(EXPERTS):
        begin = tl.load(offsets + e)
        rows = tl.load(offsets + e + 1) - begin
        tiles = tl.cdiv(rows, BM) * tiles_n
        if tile >= first and tile < first + tiles:
            x_map = tl.make_tensor_descriptor(x + begin * K, [rows, K], [K, 1], [BM, BK])
            w_map = tl.make_tensor_descriptor(w + e * N * K, [N, K], [K, 1], [BN, BK])
            out_map = tl.make_tensor_descriptor(out + begin * N, [rows, N], [N, 1], [BM, BN])
            while tile < first + tiles:
                m = (tile - first) // tiles_n * BM
                n = (tile - first) % tiles_n * BN
                total = tl.zeros((BM, BN), tl.float32)
                for k in range(0, K, BK):
                    total = tl.dot(x_map.load([m, k]), w_map.load([n, k]).T, total)
                out_map.store([m, n], total.to(out.dtype.element_ty))
                tile += tl.num_programs(0)
        first += tiles


@triton.jit
def combine(x, position, weights, out, COLUMNS: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr):
    """Out[t] = sum over k of weights[t, k] x[position[t, k]], in that order."""
    t = tl.program_id(0)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for k in range(K):
        row = tl.load(position + t * K + k)
        total += tl.load(weights + t * K + k) * tl.load(x + row * COLUMNS + c, mask=c < COLUMNS, other=0.0).to(
            tl.float32
        )
    tl.store(out + t * COLUMNS + c, total.to(out.dtype.element_ty), mask=c < COLUMNS)
