"""Matrix products through pointers: mma.sync with cp.async below sm_90, wgmma on sm_90."""

import triton
import triton.language as tl


@triton.jit
def matmul(
    a,
    b,
    c,
    scale,
    M,
    N,
    K,
    a_m,
    a_k,
    b_k,
    b_n,
    c_m,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    UNIT: tl.constexpr,
):
    """C = scale a b with ragged edges. UNIT names which of the inputs' strides are 1, two letters such as "kk"."""
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    k = tl.arange(0, BK)
    if UNIT == "kk":
        a_k = 1
        b_k = 1
    elif UNIT == "kn":
        a_k = 1
        b_n = 1
    elif UNIT == "mk":
        a_m = 1
        b_k = 1
    else:
        tl.static_assert(UNIT == "mn")
        a_m = 1
        b_n = 1
    a_tile = a + m[:, None] * a_m + k[None, :] * a_k
    b_tile = b + k[:, None] * b_k + n[None, :] * b_n
    total = tl.zeros((BM, BN), ACC)
    for start in range(0, K, BK):
        x = tl.load(a_tile, mask=(m[:, None] < M) & (k[None, :] < K - start), other=0.0)
        y = tl.load(b_tile, mask=(n[None, :] < N) & (k[:, None] < K - start), other=0.0)
        total = tl.dot(x, y, total, input_precision=PRECISION, out_dtype=ACC)
        a_tile += BK * a_k
        b_tile += BK * b_k
    result = (total * scale).to(c.dtype.element_ty)
    tl.store(c + m[:, None] * c_m + n[None, :], result, mask=(m[:, None] < M) & (n[None, :] < N))


@triton.jit
def matmul_int8(a, b, c, M, N, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """C (int32) = a [M, K] b [N, K]^T."""
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    k = tl.arange(0, BK)
    total = tl.zeros((BM, BN), tl.int32)
    for start in range(0, K, BK):
        x = tl.load(a + m[:, None] * K + start + k[None, :], mask=m[:, None] < M, other=0)
        y = tl.load(b + n[None, :] * K + start + k[:, None], mask=n[None, :] < N, other=0)
        total = tl.dot(x, y, total)
    tl.store(c + m[:, None] * N + n[None, :], total, mask=(m[:, None] < M) & (n[None, :] < N))


@triton.jit
def matmul_split_k(a, b, c, M, N, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, SPLITS: tl.constexpr):
    """C += a b, where SPLITS programs share a tile's K and add up with atomics."""
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    k = tl.program_id(2) * BK + tl.arange(0, BK)
    total = tl.zeros((BM, BN), tl.float32)
    for start in range(0, K, BK * SPLITS):
        x = tl.load(a + m[:, None] * K + start + k[None, :])
        y = tl.load(b + (start + k[:, None]) * N + n[None, :])
        total += tl.dot(x, y)
    tl.atomic_add(c + m[:, None] * N + n[None, :], total, sem="relaxed")


@triton.jit
def matmul_persistent(a, b, c, M, N, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr):
    """Every program takes tile after tile; tiles run down GROUP rows before the next column."""
    tiles_m = tl.cdiv(M, BM)
    tiles_n = tl.cdiv(N, BN)
    for tile in tl.range(tl.program_id(0), tiles_m * tiles_n, tl.num_programs(0), flatten=True):
        group = tile // (GROUP * tiles_n)
        rows = min(tiles_m - group * GROUP, GROUP)
        m = (group * GROUP + tile % (GROUP * tiles_n) % rows) * BM + tl.arange(0, BM)
        n = tile % (GROUP * tiles_n) // rows * BN + tl.arange(0, BN)
        total = tl.zeros((BM, BN), tl.float32)
        for start in range(0, K, BK):
            k = start + tl.arange(0, BK)
            x = tl.load(a + (m % M)[:, None] * K + k[None, :])
            y = tl.load(b + (n % N)[None, :] * K + k[:, None])
            total = tl.dot(x, y, total)
        mask = (m[:, None] < M) & (n[None, :] < N)
        tl.store(c + m[:, None] * N + n[None, :], total.to(c.dtype.element_ty), mask=mask)


@triton.jit
def matmul_batched(a, b, c, B: tl.constexpr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    """A three-dimensional tl.dot."""
    i = tl.arange(0, B)[:, None, None]
    m = tl.arange(0, M)
    n = tl.arange(0, N)
    k = tl.arange(0, K)
    x = tl.load(a + i * M * K + m[None, :, None] * K + k[None, None, :])
    y = tl.load(b + i * K * N + k[None, :, None] * N + n[None, None, :])
    tl.store(c + i * M * N + m[None, :, None] * N + n[None, None, :], tl.dot(x, y, input_precision="tf32"))


@triton.jit
def matmul_chain(a, b, d, out, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, L: tl.constexpr):
    """Out = (a b) d: the first product is the second's left operand, which stays in registers."""
    m = tl.arange(0, M)
    n = tl.arange(0, N)
    k = tl.arange(0, K)
    last = tl.arange(0, L)
    x = tl.load(a + m[:, None] * K + k[None, :])
    y = tl.load(b + k[:, None] * N + n[None, :])
    z = tl.load(d + n[:, None] * L + last[None, :])
    middle = tl.dot(x, y).to(d.dtype.element_ty)
    tl.store(out + m[:, None] * L + last[None, :], tl.dot(middle, z))


@triton.jit
def matmul_mixed(a, b, c, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, BK: tl.constexpr):
    """Int8 weights, widened in registers, times bf16 activations."""
    m = tl.arange(0, M)
    n = tl.arange(0, N)
    k = tl.arange(0, BK)
    total = tl.zeros((M, N), tl.float32)
    for start in range(0, K, BK):
        x = tl.load(a + m[:, None] * K + start + k[None, :])
        y = tl.load(b + n[None, :] * K + start + k[:, None]).to(tl.bfloat16)
        total = tl.dot(x, y, total)
    tl.store(c + m[:, None] * N + n[None, :], total)


@triton.jit
def matmul_scaled(
    a, a_scale, b, b_scale, c, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, FA: tl.constexpr, FB: tl.constexpr
):
    """Block-scaled formats: every 32 values along K share a power of two; FA and FB are "e4m3", "e5m2" or "e2m1"."""
    m = tl.arange(0, M)
    n = tl.arange(0, N)
    pack_a: tl.constexpr = 2 if FA == "e2m1" else 1
    pack_b: tl.constexpr = 2 if FB == "e2m1" else 1
    ka = tl.arange(0, K // pack_a)
    kb = tl.arange(0, K // pack_b)
    group = tl.arange(0, K // 32)
    x = tl.load(a + m[:, None] * (K // pack_a) + ka[None, :])
    y = tl.load(b + n[None, :] * (K // pack_b) + kb[:, None])
    xs = tl.load(a_scale + m[:, None] * (K // 32) + group[None, :])
    ys = tl.load(b_scale + n[:, None] * (K // 32) + group[None, :])
    tl.store(c + m[:, None] * N + n[None, :], tl.dot_scaled(x, xs, FA, y, ys, FB))
