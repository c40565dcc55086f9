"""Gluon, Triton's lower-level language: layouts and instructions of Hopper by hand, their encoding by Triton."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy
from triton.experimental.gluon.language.nvidia.hopper import (
    cluster,
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_init,
    warpgroup_mma_wait,
)


@gluon.jit
def wgmma(
    a,
    b,
    c,
    M: gl.constexpr,
    N: gl.constexpr,
    K: gl.constexpr,
    A_LAYOUT: gl.constexpr,
    B_LAYOUT: gl.constexpr,
    INSTRUCTION_N: gl.constexpr,
    A_IN_REGISTERS: gl.constexpr,
    ACC: gl.constexpr,
):
    """C = a [M, K] b [K, N], both row-major in global memory, in any layout of shared memory; one block."""
    rows: gl.constexpr = gl.BlockedLayout([1, 1], [1, 32], [gl.num_warps(), 1], [1, 0])
    element: gl.constexpr = a.dtype.element_ty
    m = gl.arange(0, M, gl.SliceLayout(1, rows))
    ka = gl.arange(0, K, gl.SliceLayout(0, rows))
    kb = gl.arange(0, K, gl.SliceLayout(1, rows))
    n = gl.arange(0, N, gl.SliceLayout(0, rows))
    x = gl.load(a + m[:, None] * K + ka[None, :])
    y = gl.load(b + kb[:, None] * N + n[None, :])
    result: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0],
        warps_per_cta=[gl.num_warps(), 1],
        instr_shape=[16, INSTRUCTION_N, 256 // element.primitive_bitwidth],
    )
    y_shared = gl.allocate_shared_memory(element, [K, N], B_LAYOUT, y)
    total = gl.zeros((M, N), ACC, result)
    if A_IN_REGISTERS:
        operand: gl.constexpr = gl.DotOperandLayout(0, result, 32 // element.primitive_bitwidth)
        fence_async_shared()
        gl.barrier()
        total = warpgroup_mma(gl.convert_layout(x, operand), y_shared, total)
    else:
        x_shared = gl.allocate_shared_memory(element, [M, K], A_LAYOUT, x)
        fence_async_shared()
        gl.barrier()
        running = warpgroup_mma(x_shared, y_shared, warpgroup_mma_init(total), is_async=True)
        total = warpgroup_mma_wait(0, deps=(running,))
    mm = gl.arange(0, M, gl.SliceLayout(1, result))
    nn = gl.arange(0, N, gl.SliceLayout(0, result))
    gl.store(c + mm[:, None] * N + nn[None, :], total)


@gluon.jit
def _load_tiles(a, b, a_tiles, b_tiles, full, empty, m, n, K, STAGES: gl.constexpr):
    """The producer: one warp that keeps STAGES tiles in flight."""
    bk: gl.constexpr = a.block_type.shape[1]
    for i in range(gl.cdiv(K, bk)):
        stage = i % STAGES
        # The first wait on a fresh barrier for the other parity passes.
        mbarrier.wait(empty.index(stage), (i // STAGES & 1) ^ 1)
        mbarrier.expect(full.index(stage), a.block_type.nbytes + b.block_type.nbytes)
        tma.async_load(a, [m, i * bk], full.index(stage), a_tiles.index(stage))
        tma.async_load(b, [n, i * bk], full.index(stage), b_tiles.index(stage))


@gluon.jit
def _multiply_tiles(a_tiles, b_tiles, full, empty, c, m, n, steps, STAGES: gl.constexpr, result: gl.constexpr):
    """The consumer: a warp group that gives a stage back one step late, when its wgmma has ended."""
    bm: gl.constexpr = c.block_type.shape[0]
    bn: gl.constexpr = c.block_type.shape[1]
    total = gl.zeros((bm, bn), gl.float32, result)
    for i in range(steps):
        stage = i % STAGES
        mbarrier.wait(full.index(stage), i // STAGES & 1)
        running = warpgroup_mma(a_tiles.index(stage), b_tiles.index(stage).permute((1, 0)), total, is_async=True)
        total = warpgroup_mma_wait(1, deps=(running,))
        mbarrier.arrive(empty.index((i + STAGES - 1) % STAGES), pred=i > 0)
    total = warpgroup_mma_wait(0, deps=(total,))
    staging = gl.allocate_shared_memory(c.dtype, c.block_type.shape, c.layout)
    staging.store(total.to(c.dtype))
    fence_async_shared()
    tma.async_store(c, [m, n], staging)
    tma.store_wait(0)


@gluon.jit
def matmul_roles(a, b, c, K, STAGES: gl.constexpr):
    """C = a b^T: a producer warp and a consumer warp group with a ring of stages between them."""
    bm: gl.constexpr = c.block_type.shape[0]
    bn: gl.constexpr = c.block_type.shape[1]
    bk: gl.constexpr = a.block_type.shape[1]
    result: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[gl.num_warps(), 1], instr_shape=[16, bn, 16]
    )
    m = gl.program_id(0) * bm
    n = gl.program_id(1) * bn
    a_tiles = gl.allocate_shared_memory(a.dtype, [STAGES, bm, bk], a.layout)
    b_tiles = gl.allocate_shared_memory(b.dtype, [STAGES, bn, bk], b.layout)
    full = mbarrier.allocate_mbarrier(batch=STAGES)
    empty = mbarrier.allocate_mbarrier(batch=STAGES)
    for i in gl.static_range(STAGES):
        mbarrier.init(full.index(i), count=1)
        mbarrier.init(empty.index(i), count=1)
    gl.warp_specialize(
        [
            (_multiply_tiles, (a_tiles, b_tiles, full, empty, c, m, n, gl.cdiv(K, bk), STAGES, result)),
            (_load_tiles, (a, b, a_tiles, b_tiles, full, empty, m, n, K, STAGES)),
        ],
        [1],
        [40],
    )


@gluon.jit
def multicast_copy(src, out, ROWS: gl.constexpr, COLUMNS: gl.constexpr, LAYOUT: gl.constexpr):
    """One load fills the shared memory of both blocks of a cluster; each stores its half of a copy."""
    tile = gl.allocate_shared_memory(src.dtype, [ROWS, COLUMNS], src.layout)
    barrier = mbarrier.allocate_mbarrier()
    mbarrier.init(barrier, count=1)
    cluster.barrier()
    mbarrier.expect(barrier, src.nbytes_per_cta)
    tma.async_load(src, [gl.program_id(0) * ROWS, 0], barrier, tile, multicast=True)
    mbarrier.wait(barrier, 0)
    r = gl.program_id(0) * ROWS + gl.arange(0, ROWS, gl.SliceLayout(1, LAYOUT))
    c = gl.arange(0, COLUMNS, gl.SliceLayout(0, LAYOUT))
    gl.store(out + r[:, None] * COLUMNS + c[None, :], tile.load(LAYOUT) * 2)
    cluster.barrier()
    mbarrier.invalidate(barrier)


@gluon.jit
def ampere_ring(x, out, rows, COLUMNS: gl.constexpr, STAGES: gl.constexpr):
    """Sum of rows with cp.async whose arrival mbarriers count (sm_80 and later)."""
    layout: gl.constexpr = gl.BlockedLayout([4], [32], [gl.num_warps()], [0])
    shared: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    c = gl.arange(0, COLUMNS, layout)
    tiles = gl.allocate_shared_memory(x.dtype.element_ty, [STAGES, COLUMNS], shared)
    barriers = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(STAGES):
        mbarrier.init(barriers.index(i), count=32 * gl.num_warps())
    gl.barrier()
    for i in gl.static_range(STAGES - 1):
        async_copy.async_load(tiles.index(i), x + i * COLUMNS + c, mask=c < (rows - i) * COLUMNS)
        async_copy.mbarrier_arrive(barriers.index(i), increment_count=False)
    total = gl.zeros((COLUMNS,), x.dtype.element_ty, layout)
    for i in range(rows):
        ahead = i + STAGES - 1
        # Every thread reads back what it copied itself, and all are past the stage's last use.
        gl.barrier()
        async_copy.async_load(tiles.index(ahead % STAGES), x + ahead * COLUMNS + c, mask=c < (rows - ahead) * COLUMNS)
        async_copy.mbarrier_arrive(barriers.index(ahead % STAGES), increment_count=False)
        mbarrier.wait(barriers.index(i % STAGES), i // STAGES & 1)
        total += tiles.index(i % STAGES).load(layout)
    async_copy.wait_group(0)
    gl.store(out + c, total)
