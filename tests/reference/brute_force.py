"""The ops once more, in loops over Python floats and lists: what the reference itself is tested against."""

import math
from collections.abc import Callable, Sequence

Matrix = list[list[float]]


def top_indices(values: Sequence[float], count: int) -> list[int]:
    """Indices of the largest values, largest first, equal ones by the lower index, NaN before all."""
    return sorted(range(len(values)), key=lambda i: (not math.isnan(values[i]), -values[i], i))[:count]


def softmax(values: Sequence[float]) -> list[float]:
    top = max(values)
    powers = [math.exp(value - top) for value in values]
    return [power / math.fsum(powers) for power in powers]


SCORES: dict[str, Callable[[Sequence[float]], list[float]]] = {
    "softmax": softmax,
    "sigmoid": lambda row: [1 / (1 + math.exp(-z)) for z in row],
    "sqrtsoftplus": lambda row: [math.sqrt(math.log1p(math.exp(z))) for z in row],
    "none": list,
}


def route_row(
    logits: Sequence[float],
    top_k: int,
    score: str = "softmax",
    softmax_after: bool = False,
    bias: Sequence[float] | None = None,
    num_groups: int = 1,
    topk_groups: int = 1,
    group_top: int = 1,
    group_fill: str = "-inf",
    renormalize: bool = False,
    eps: float = 1e-20,
    scale: float = 1.0,
) -> tuple[list[float], list[int]]:
    """Weights and ids of one token with finite logits."""
    scores = list(logits) if softmax_after else SCORES[score](logits)
    values = [s + b for s, b in zip(scores, bias or [0.0] * len(scores), strict=True)]
    size = len(values) // num_groups
    if num_groups > 1:
        groups = [sorted(values[g * size : (g + 1) * size], reverse=True)[:group_top] for g in range(num_groups)]
        kept = top_indices([sum(group) for group in groups], topk_groups)
        values = [value if e // size in kept else float(group_fill) for e, value in enumerate(values)]
    ids = top_indices(values, top_k)
    weights = [scores[e] for e in ids]
    if softmax_after:
        weights = softmax(weights)
    if renormalize:
        total = math.fsum(weights) + eps
        weights = [weight / total for weight in weights]
    return [weight * scale for weight in weights], ids


def permute(
    topk_ids: list[list[int]], num_experts: int, capacity: int | None = None, drop_order: str = "token"
) -> tuple[list[int], list[int], list[list[int]]]:
    """expert_offsets, row_to_slot, slot_to_row."""
    slots = [(token, k) for token, row in enumerate(topk_ids) for k in range(len(row))]
    taken = [0] * num_experts
    kept = set()
    for token, k in sorted(slots, key=lambda slot: slot if drop_order == "token" else slot[::-1]):
        expert = topk_ids[token][k]
        if 0 <= expert < num_experts and (capacity is None or taken[expert] < capacity):
            taken[expert] += 1
            kept.add((token, k))
    offsets = [0]
    row_to_slot: list[int] = []
    slot_to_row = [[-1] * len(row) for row in topk_ids]
    for expert in range(num_experts):
        for token, row in enumerate(topk_ids):
            for k, chosen in enumerate(row):
                if chosen == expert and (token, k) in kept:
                    slot_to_row[token][k] = len(row_to_slot)
                    row_to_slot.append(token * len(row) + k)
        offsets.append(len(row_to_slot))
    return offsets, row_to_slot + [-1] * (len(slots) - len(row_to_slot)), slot_to_row


def affine(matrix: Matrix, x: Sequence[float], bias: Sequence[float] | None) -> list[float]:
    """``matrix @ x + bias``."""
    products = [math.fsum(a * b for a, b in zip(row, x, strict=True)) for row in matrix]
    return products if bias is None else [a + b for a, b in zip(products, bias, strict=True)]


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def gelu(z: float) -> float:
    return 0.5 * z * (1 + math.erf(z / math.sqrt(2)))


def gelu_tanh(z: float) -> float:
    return 0.5 * z * (1 + math.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))


def clamped_swiglu(g: float, u: float, alpha: float, limit: float) -> float:
    g, u = min(g, limit), min(max(u, -limit), limit)
    return (u + 1) * g * sigmoid(alpha * g)


GATED: dict[str, Callable[[float, float, float, float], float]] = {
    "swiglu": lambda g, u, alpha, limit: g * sigmoid(g) * u,
    "geglu": lambda g, u, alpha, limit: gelu(g) * u,
    "geglu_tanh": lambda g, u, alpha, limit: gelu_tanh(g) * u,
    "reglu": lambda g, u, alpha, limit: max(g, 0.0) * u,
    "clamped_swiglu": clamped_swiglu,
}
UNGATED: dict[str, Callable[[float], float]] = {
    "silu": lambda z: z * sigmoid(z),
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "relu": lambda z: max(z, 0.0),
    "relu2": lambda z: max(z, 0.0) ** 2,
}


def activate(
    preact: Sequence[float], activation: str, alpha: float = 1.702, limit: float = 7.0, interleaved: bool = False
) -> list[float]:
    if activation in UNGATED:
        return [UNGATED[activation](z) for z in preact]
    half = len(preact) // 2
    pairs = [(preact[2 * i], preact[2 * i + 1]) if interleaved else (preact[i], preact[half + i]) for i in range(half)]
    return [GATED[activation](g, u, alpha, limit) for g, u in pairs]


def fused_experts(
    x: Matrix,
    w_gate_up: list[Matrix],
    w_down: list[Matrix],
    topk_weights: Matrix,
    topk_ids: list[list[int]],
    b_gate_up: Matrix | None = None,
    b_down: Matrix | None = None,
    apply_weights: str = "output",
    **activation: str | float | bool,
) -> Matrix:
    """Weights in the default ``[E, out, in]`` layout."""
    y = []
    for row, weights, ids in zip(x, topk_weights, topk_ids, strict=True):
        total = [0.0] * len(row)
        for weight, expert in zip(weights, ids, strict=True):
            if not 0 <= expert < len(w_down):
                continue
            scaled = [weight * value for value in row] if apply_weights == "input" else row
            preact = affine(w_gate_up[expert], scaled, None if b_gate_up is None else b_gate_up[expert])
            hidden = activate(preact, **activation)  # type: ignore[arg-type]
            out = affine(w_down[expert], hidden, None if b_down is None else b_down[expert])
            factor = 1.0 if apply_weights == "input" else weight
            total = [sum_ + factor * value for sum_, value in zip(total, out, strict=True)]
        y.append(total)
    return y
