"""Kernels on tensor descriptors: the TMA unit and wgmma on sm_90, plain pointers below."""

import triton
import triton.language as tl


@triton.jit
def copy_2d(src, dst, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    r = tl.program_id(0) * ROWS
    c = tl.program_id(1) * COLUMNS
    dst.store([r, c], src.load([r, c]))


@triton.jit
def add_one_2d(src, dst, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Through registers: the swizzle of the box must be undone and redone."""
    r = tl.program_id(0) * ROWS
    c = tl.program_id(1) * COLUMNS
    dst.store([r, c], src.load([r, c]) + 1)


@triton.jit
def load_shifted(src, out, row, column, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """A box at any position, partly or wholly outside of the tensor."""
    tile = src.load([row, column])
    tl.store(out + tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :], tile)


@triton.jit
def copy_1d(src, dst, BLOCK: tl.constexpr):
    offset = tl.program_id(0) * BLOCK
    dst.store([offset], src.load([offset]) * 2)


@triton.jit
def copy_3d(src, dst, A: tl.constexpr, B: tl.constexpr, C: tl.constexpr):
    i = tl.program_id(0) * A
    j = tl.program_id(1) * B
    k = tl.program_id(2) * C
    dst.store([i, j, k], src.load([i, j, k]) * 2)


@triton.jit
def copy_5d(src, dst, A: tl.constexpr, B: tl.constexpr, C: tl.constexpr, D: tl.constexpr, E: tl.constexpr):
    i = tl.program_id(0) * A
    j = tl.program_id(1) * B
    k = tl.program_id(2) * C
    dst.store([i, j, k, 0, 0], src.load([i, j, k, 0, 0]) * 2)


@triton.jit
def reduce_2d(src, dst, OP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """All programs along axis 0 combine their tile into the same tile of `dst`."""
    c = tl.program_id(1) * COLUMNS
    tile = src.load([tl.program_id(0) * ROWS, c])
    if OP == "add":
        dst.atomic_add([0, c], tile)
    elif OP == "min":
        dst.atomic_min([0, c], tile)
    elif OP == "max":
        dst.atomic_max([0, c], tile)
    elif OP == "and":
        dst.atomic_and([0, c], tile)
    elif OP == "or":
        dst.atomic_or([0, c], tile)
    else:
        tl.static_assert(OP == "xor")
        dst.atomic_xor([0, c], tile)


@triton.jit
def matmul(a, b, c, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, A_T: tl.constexpr, B_T: tl.constexpr):
    """C = a b; A_T: a is stored as [K, M]; B_T: b is stored as [N, K]."""
    m = tl.program_id(0) * BM
    n = tl.program_id(1) * BN
    total = tl.zeros((BM, BN), tl.float32)
    for k in range(0, K, BK):
        if A_T:
            x = a.load([k, m]).T
        else:
            x = a.load([m, k])
        if B_T:
            y = b.load([n, k]).T
        else:
            y = b.load([k, n])
        total = tl.dot(x, y, total)
    c.store([m, n], total.to(c.dtype))


@triton.jit
def matmul_accumulate(a, b, c, K, alpha, beta, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """C = alpha a b^T + beta c, in place."""
    m = tl.program_id(0) * BM
    n = tl.program_id(1) * BN
    total = tl.zeros((BM, BN), tl.float32)
    for k in range(0, K, BK):
        total = tl.dot(a.load([m, k]), b.load([n, k]).T, total)
    c.store([m, n], (alpha * total + beta * c.load([m, n]).to(tl.float32)).to(c.dtype))


@triton.jit
def matmul_device(a, b, c, M, N, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """C = a b^T with descriptors that the kernel makes itself (tensormap.replace)."""
    a_map = tl.make_tensor_descriptor(a, [M, K], [K, 1], [BM, BK])
    b_map = tl.make_tensor_descriptor(b, [N, K], [K, 1], [BN, BK])
    c_map = tl.make_tensor_descriptor(c, [M, N], [N, 1], [BM, BN])
    m = tl.program_id(0) * BM
    n = tl.program_id(1) * BN
    total = tl.zeros((BM, BN), tl.float32)
    for k in range(0, K, BK):
        total = tl.dot(a_map.load([m, k]), b_map.load([n, k]).T, total)
    c_map.store([m, n], total.to(c.dtype.element_ty))


@triton.jit
def matmul_persistent(a, b, c, M, N, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """C = a b^T, tile after tile, in one flat loop over tiles and steps."""
    tiles_m = tl.cdiv(M, BM)
    tiles_n = tl.cdiv(N, BN)
    for tile in tl.range(tl.program_id(0), tiles_m * tiles_n, tl.num_programs(0), flatten=True):
        m = tile % tiles_m * BM
        n = tile // tiles_m * BN
        total = tl.zeros((BM, BN), tl.float32)
        for k in range(0, K, BK):
            total = tl.dot(a.load([m, k]), b.load([n, k]).T, total)
        c.store([m, n], total.to(c.dtype))


@triton.jit
def matmul_roles(a, b, c, M, N, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """The same with warp groups in roles: one loads, two multiply half of the tile's rows each.

    BM is at least 128: below, Triton gives both the whole tile. Descriptors from the host it cannot split at all.
    """
    a_map = tl.make_tensor_descriptor(a, [M, K], [K, 1], [BM, BK])
    b_map = tl.make_tensor_descriptor(b, [N, K], [K, 1], [BN, BK])
    c_map = tl.make_tensor_descriptor(c, [M, N], [N, 1], [BM, BN])
    tiles_m = tl.cdiv(M, BM)
    tiles_n = tl.cdiv(N, BN)
    for tile in tl.range(tl.program_id(0), tiles_m * tiles_n, tl.num_programs(0), warp_specialize=True):
        m = tile % tiles_m * BM
        n = tile // tiles_m * BN
        total = tl.zeros((BM, BN), tl.float32)
        for k in range(0, K, BK):
            total = tl.dot(a_map.load([m, k]), b_map.load([n, k]).T, total)
        c_map.store([m, n], total.to(c.dtype.element_ty))
