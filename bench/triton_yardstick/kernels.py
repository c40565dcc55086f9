"""The yardstick's kernels: two grouped products and the elementwise passes between them."""

import triton
import triton.language as tl


@triton.jit
def grouped_gemm(
    a,
    b,
    c,
    row_weights,
    a_rows,
    c_rows,
    block_experts,
    N,
    K,
    b_expert,
    b_n,
    b_k,
    num_rows,
    A_DIVISOR: tl.constexpr,
    B_K_MAJOR: tl.constexpr,
    WEIGHTED: tl.constexpr,
    EVEN_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """c[c_rows[p]] = a[a_rows[p] // A_DIVISOR] b[expert]^T for every place p of the padded order, K being a's width.

    Padding has c_rows[p] = num_rows. With WEIGHTED the row is multiplied by row_weights[c_rows[p]].
    """
    tiles_n = tl.cdiv(N, BLOCK_N)
    block = tl.program_id(0) // tiles_n
    place = block * BLOCK_M + tl.arange(0, BLOCK_M)
    to = tl.load(c_rows + place)
    valid = to < num_rows
    source = tl.load(a_rows + place).to(tl.int64) // A_DIVISOR
    expert = tl.load(block_experts + block).to(tl.int64)
    n = tl.program_id(0) % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)
    # Columns past the end load those from the start again: no mask in the loop.
    n_load = n % N
    k = tl.arange(0, BLOCK_K)
    a_tile = a + source[:, None] * K + k[None, :]
    if B_K_MAJOR:
        b_tile = b + expert * b_expert + n_load[None, :] * b_n + k[:, None]
        b_step = BLOCK_K
    else:
        b_tile = b + expert * b_expert + n_load[None, :] + k[:, None] * b_k
        b_step = BLOCK_K * b_k
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, K, BLOCK_K):
        if EVEN_K:
            x = tl.load(a_tile, mask=valid[:, None], other=0.0)
            y = tl.load(b_tile)
        else:
            x = tl.load(a_tile, mask=valid[:, None] & (k[None, :] < K - start), other=0.0)
            y = tl.load(b_tile, mask=k[:, None] < K - start, other=0.0)
        total = tl.dot(x, y, total)
        a_tile += BLOCK_K
        b_tile += b_step
    if WEIGHTED:
        total *= tl.load(row_weights + to, mask=valid, other=0.0)[:, None]
    c_tile = c + to.to(tl.int64)[:, None] * N + n[None, :]
    tl.store(c_tile, total.to(c.dtype.element_ty), mask=valid[:, None] & (n[None, :] < N))


@triton.jit
def grouped_wgrad(
    left,
    right,
    out,
    offsets,
    N,
    K,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """out[e] = left[rows of e]^T right[rows of e], rows sorted by expert: [N, K] of each expert."""
    tiles_k = tl.cdiv(K, BLOCK_K)
    n = tl.program_id(0) // tiles_k * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.program_id(0) % tiles_k * BLOCK_K + tl.arange(0, BLOCK_K)
    expert = tl.program_id(1)
    begin = tl.load(offsets + expert)
    end = tl.load(offsets + expert + 1)
    r = begin.to(tl.int64) + tl.arange(0, BLOCK_R)
    left_tile = left + r[None, :] * N + (n % N)[:, None]
    right_tile = right + r[:, None] * K + (k % K)[None, :]
    total = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    for start in range(begin, end, BLOCK_R):
        inside = start + tl.arange(0, BLOCK_R) < end
        x = tl.load(left_tile, mask=inside[None, :], other=0.0)
        y = tl.load(right_tile, mask=inside[:, None], other=0.0)
        total = tl.dot(x, y, total)
        left_tile += BLOCK_R * N
        right_tile += BLOCK_R * K
    out_tile = out + expert.to(tl.int64) * N * K + n[:, None] * K + k[None, :]
    tl.store(out_tile, total.to(out.dtype.element_ty), mask=(n[:, None] < N) & (k[None, :] < K))


@triton.jit
def silu_and_mul(z, act, I, BLOCK: tl.constexpr):  # noqa: E741
    """act[r] = silu(gate) * up, z[r] = [gate, up]."""
    row = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    gate = tl.load(z + row * 2 * I + c, mask=c < I, other=0.0).to(tl.float32)
    up = tl.load(z + row * 2 * I + I + c, mask=c < I, other=0.0).to(tl.float32)
    tl.store(act + row * I + c, (gate * tl.sigmoid(gate) * up).to(act.dtype.element_ty), mask=c < I)


@triton.jit
def silu_and_mul_backward(z, grad_act, grad_z, I, BLOCK: tl.constexpr):  # noqa: E741
    """grad_z[r] from grad_act[r] and z[r] = [gate, up]."""
    row = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    gate = tl.load(z + row * 2 * I + c, mask=c < I, other=0.0).to(tl.float32)
    up = tl.load(z + row * 2 * I + I + c, mask=c < I, other=0.0).to(tl.float32)
    grad = tl.load(grad_act + row * I + c, mask=c < I, other=0.0).to(tl.float32)
    sigmoid = tl.sigmoid(gate)
    grad_gate = grad * up * sigmoid * (1 + gate * (1 - sigmoid))
    grad_up = grad * gate * sigmoid
    tl.store(grad_z + row * 2 * I + c, grad_gate.to(grad_z.dtype.element_ty), mask=c < I)
    tl.store(grad_z + row * 2 * I + I + c, grad_up.to(grad_z.dtype.element_ty), mask=c < I)


@triton.jit
def gather_rows(x, row_to_slot, rows, H, K: tl.constexpr, BLOCK: tl.constexpr):
    """rows[r] = x[row_to_slot[r] // K]."""
    row = tl.program_id(0).to(tl.int64)
    token = tl.load(row_to_slot + row).to(tl.int64) // K
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    tl.store(rows + row * H + c, tl.load(x + token * H + c, mask=c < H), mask=c < H)


@triton.jit
def combine_backward(
    grad_y, slot_rows, weights, slot_to_row, grad_rows, grad_weights, H, K: tl.constexpr, BLOCK: tl.constexpr
):
    """Of y[t] = sum over k of weights[t, k] * slot_rows[t, k]: grad_rows, sorted by expert, and grad_weights."""
    slot = tl.program_id(0).to(tl.int64)
    row = tl.load(slot_to_row + slot).to(tl.int64)
    weight = tl.load(weights + slot)
    dot = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, H, BLOCK):
        c = start + tl.arange(0, BLOCK)
        grad = tl.load(grad_y + slot // K * H + c, mask=c < H, other=0.0).to(tl.float32)
        dot += grad * tl.load(slot_rows + slot * H + c, mask=c < H, other=0.0).to(tl.float32)
        tl.store(grad_rows + row * H + c, (weight * grad).to(grad_rows.dtype.element_ty), mask=c < H)
    tl.store(grad_weights + slot, tl.sum(dot, 0))


@triton.jit
def sum_over_k(slot_rows, weights, y, H, K: tl.constexpr, WEIGHTED: tl.constexpr, BLOCK: tl.constexpr):
    """y[t] = sum over k of (weights[t, k] *) slot_rows[t, k]."""
    t = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for k in tl.static_range(K):
        row = tl.load(slot_rows + (t * K + k) * H + c, mask=c < H, other=0.0).to(tl.float32)
        if WEIGHTED:
            row *= tl.load(weights + t * K + k)
        total += row
    tl.store(y + t * H + c, total.to(y.dtype.element_ty), mask=c < H)


@triton.jit
def route(logits, weights, ids, num_tokens, E: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr):
    """Softmax over E, the K largest, one after another, and weights that sum to 1."""
    t = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    e = tl.arange(0, E)
    k = tl.arange(0, K)
    valid = t < num_tokens
    score = tl.load(logits + t[:, None] * E + e[None, :], mask=valid[:, None], other=0.0).to(tl.float32)
    score = tl.exp(score - tl.max(score, 1)[:, None])
    top_weights = tl.zeros((BLOCK, K), tl.float32)
    top_ids = tl.zeros((BLOCK, K), tl.int32)
    for i in tl.static_range(K):
        best, index = tl.max(score, 1, return_indices=True)
        top_weights = tl.where(k[None, :] == i, best[:, None], top_weights)
        top_ids = tl.where(k[None, :] == i, index[:, None], top_ids)
        score = tl.where(e[None, :] == index[:, None], -1.0, score)
    top_weights /= tl.sum(top_weights, 1)[:, None]
    place = t[:, None] * K + k[None, :]
    tl.store(weights + place, top_weights, mask=valid[:, None])
    tl.store(ids + place, top_ids, mask=valid[:, None])
