"""fused_experts: the whole way from tokens and their routing to the output of the experts."""

from torch import Tensor

from moe_ext.reference.activations import activate
from moe_ext.reference.combine import combine
from moe_ext.reference.grouped_gemm import grouped_gemm
from moe_ext.reference.permute import gather_rows, permute
from moe_ext.reference.precision import compute_dtype, take_rows


def fused_experts(
    x: Tensor,
    w_gate_up: Tensor,
    w_down: Tensor,
    topk_weights: Tensor,
    topk_ids: Tensor,
    *,
    activation: str = "swiglu",
    alpha: float = 1.702,
    limit: float = 7.0,
    b_gate_up: Tensor | None = None,
    b_down: Tensor | None = None,
    interleaved: bool = False,
    transposed: bool = False,
    apply_weights: str = "output",
    save: str = "preact",
    workspace_limit: int | None = None,
    deterministic: bool = False,
    max_rows: int | None = None,
) -> Tensor:
    """``y[t] = sum over k of w * (W_down act(W_gate_up x[t] + b_gate_up) + b_down)`` of the experts of token t.

    Differentiable in all floating arguments.

    Args:
        x: ``[T, H]``.
        w_gate_up: ``[E, G, H]``, or ``[E, H, G]`` if ``transposed``; G is 2I for gated activations, else I.
        w_down: ``[E, H, I]``, or ``[E, I, H]`` if ``transposed``.
        topk_weights: ``[T, K]``, any floating dtype.
        topk_ids: ``[T, K]``, integers; those outside of 0 .. E-1 add nothing and get no gradient.
        activation, alpha, limit, interleaved: see ``activate``.
        b_gate_up: ``[E, G]``, in the order of the rows of w_gate_up.
        b_down: ``[E, H]``.
        apply_weights: ``output``, as above, or ``input``: the weight multiplies x[t] instead (Llama 4), and the
            outputs are summed as they are. The scaled row is rounded to the dtype of x.
        save, workspace_limit, deterministic, max_rows: accepted and without effect; they choose how, not what.

    Returns:
        ``[T, H]`` in the dtype of x.

    Raises:
        ValueError: an unknown ``activation`` or ``apply_weights``.
    """
    if apply_weights not in ("output", "input"):
        raise ValueError(f"apply_weights: expected 'output' or 'input', got {apply_weights!r}")
    permutation = expert_offsets, row_to_slot, _ = permute(topk_ids, w_gate_up.shape[0])

    rows = gather_rows(x, permutation)
    if apply_weights == "input":
        weights = topk_weights.to(compute_dtype(x.dtype))
        rows = (rows * take_rows(weights.flatten(), row_to_slot)[:, None]).to(x.dtype)
        topk_weights = weights.new_ones(topk_ids.shape)

    preact = grouped_gemm(rows, w_gate_up, expert_offsets, bias=b_gate_up, transposed=transposed)
    hidden = activate(preact, activation, alpha=alpha, limit=limit, interleaved=interleaved)
    rows = grouped_gemm(hidden, w_down, expert_offsets, bias=b_down, transposed=transposed)
    return combine(rows, topk_weights, permutation)
