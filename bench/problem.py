"""The tensors of one cell and their float64 truth.

The layer: logits = x W_r^T, softmax, top-k, renormalise over the k, y = sum_k w_k W_down_k (silu(g) * u) with
(g, u) = W_gate_up_k x. Renormalising a softmax over its top-k equals a softmax over the k selected logits, which is
what the truth computes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.shapes import Shape

# x [T,H] -> y [T,H]
Layer = Callable[[Tensor], Tensor]

# Tokens whose k-th and (k+1)-th logits are nearer than this are redrawn: bfloat16 logits tie often, and which of two
# equal experts is taken is nobody's error.
_MIN_LOGIT_GAP = 1e-4


@dataclass(frozen=True)
class Problem:
    """x [T,H], w_router [E,H], w_gate_up [E,2I,H] gate first, w_down [E,H,I], grad_y [T,H]: one dtype, all leaves."""

    shape: Shape
    x: Tensor
    w_router: nn.Parameter
    w_gate_up: nn.Parameter
    w_down: nn.Parameter
    grad_y: Tensor

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of data and weights."""
        return self.x.dtype

    @property
    def leaves(self) -> dict[str, Tensor]:
        """What gradients are taken of, by name."""
        return {"x": self.x, "w_router": self.w_router, "w_gate_up": self.w_gate_up, "w_down": self.w_down}

    @torch.no_grad()
    def logits(self) -> Tensor:
        """[T,E], in the data's own dtype, as every contender computes them."""
        return F.linear(self.x, self.w_router)

    def topk_ids(self) -> Tensor:
        """Experts of each token [T,K]."""
        return self.logits().float().topk(self.shape.top_k, dim=-1).indices

    @torch.no_grad()
    def copy(self) -> Problem:
        """The same in memory of its own: where tensors are made where this is called."""
        x, w_router, w_gate_up, w_down = (leaf.detach().clone() for leaf in self.leaves.values())
        weights = (nn.Parameter(w) for w in (w_router, w_gate_up, w_down))
        return Problem(self.shape, x.requires_grad_(), *weights, self.grad_y.clone())

    def expert_load(self) -> Tensor:
        """Rows of each expert [E]."""
        return torch.bincount(self.topk_ids().flatten(), minlength=self.shape.num_experts)


@dataclass(frozen=True)
class Truth:
    """y and, when asked for, the gradients of `Problem.leaves`: computed in float64, kept as float32."""

    y: Tensor
    grads: dict[str, Tensor] | None


def route_plainly(problem: Problem, x: Tensor) -> tuple[Tensor, Tensor]:
    """topk_weights [T,K] float32 and topk_ids [T,K] int64 in plain PyTorch."""
    probabilities = F.linear(x, problem.w_router).softmax(dim=-1, dtype=torch.float32)
    topk_weights, topk_ids = probabilities.topk(problem.shape.top_k, dim=-1)
    return topk_weights / topk_weights.sum(dim=-1, keepdim=True), topk_ids


def _normal(generator: torch.Generator, *size: int, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    """Filled slice by slice, so that no full-size float32 copy of a bfloat16 weight ever exists."""
    out = torch.empty(size, dtype=dtype)
    for part in out if len(size) == 3 else (out,):
        part.copy_(torch.randn(part.shape, generator=generator).mul_(scale))
    return out


def _has_near_tie(logits: Tensor, top_k: int) -> Tensor:
    if top_k == logits.size(-1):
        return torch.zeros(logits.size(0), dtype=torch.bool)
    top = logits.float().topk(top_k + 1, dim=-1).values
    return top[:, -2] - top[:, -1] < _MIN_LOGIT_GAP


def make_problem(shape: Shape, dtype: torch.dtype, seed: int = 0) -> Problem:
    """Unit-variance x and grad_y, weights of scale 1/sqrt(fan_in), no token with a tie at its k-th expert."""
    generator = torch.Generator().manual_seed(seed)
    hidden, inner, experts = shape.hidden_size, shape.intermediate_size, shape.num_experts
    x = _normal(generator, shape.num_tokens, hidden, dtype=dtype)
    w_router = _normal(generator, experts, hidden, dtype=dtype, scale=hidden**-0.5)
    for _ in range(100):
        tied = _has_near_tie(F.linear(x, w_router), shape.top_k)
        if not tied.any():
            break
        x[tied] = _normal(generator, int(tied.sum()), hidden, dtype=dtype)
    else:
        raise RuntimeError(f"could not draw tokens without ties for shape {shape.name}")
    w_gate_up = _normal(generator, experts, 2 * inner, hidden, dtype=dtype, scale=hidden**-0.5)
    w_down = _normal(generator, experts, hidden, inner, dtype=dtype, scale=inner**-0.5)
    return Problem(
        shape,
        x.requires_grad_(),
        nn.Parameter(w_router),
        nn.Parameter(w_gate_up),
        nn.Parameter(w_down),
        _normal(generator, shape.num_tokens, hidden, dtype=dtype),
    )


@torch.no_grad()
def solve(problem: Problem, with_grads: bool) -> Truth:
    """The truth for `problem`, one expert at a time in float64, derivatives written out by hand."""
    shape = problem.shape
    topk_ids = problem.topk_ids()
    x, w_router, grad_y = problem.x.double(), problem.w_router.double(), problem.grad_y.double()
    topk_weights = (x @ w_router.T).gather(1, topk_ids).softmax(dim=-1)

    y, grad_x, grad_weights = torch.zeros_like(x), torch.zeros_like(x), torch.zeros_like(topk_weights)
    grad_gate_up = torch.zeros(problem.w_gate_up.shape if with_grads else (0,))
    grad_down = torch.zeros(problem.w_down.shape if with_grads else (0,))
    for expert in range(shape.num_experts):
        token, k = torch.where(topk_ids == expert)
        if not len(token):
            continue
        w_gate_up, w_down = problem.w_gate_up[expert].double(), problem.w_down[expert].double()
        rows, weight = x[token], topk_weights[token, k, None]
        gate, up = (rows @ w_gate_up.T).chunk(2, dim=-1)
        sigmoid = gate.sigmoid()
        act = gate * sigmoid * up
        out = act @ w_down.T
        y.index_add_(0, token, weight * out)
        if not with_grads:
            continue
        grad_out = grad_y[token]
        grad_weights[token, k] = (grad_out * out).sum(dim=-1)
        grad_out = grad_out * weight
        grad_act = grad_out @ w_down
        grad_gate = grad_act * up * sigmoid * (1 + gate * (1 - sigmoid))
        grad_preact = torch.cat((grad_gate, grad_act * gate * sigmoid), dim=-1)
        grad_down[expert] = grad_out.T @ act
        grad_gate_up[expert] = grad_preact.T @ rows
        grad_x.index_add_(0, token, grad_preact @ w_gate_up)
    if not with_grads:
        return Truth(y.float(), None)

    centred = grad_weights - (topk_weights * grad_weights).sum(dim=-1, keepdim=True)
    grad_logits = torch.zeros(shape.num_tokens, shape.num_experts, dtype=torch.float64)
    grad_logits.scatter_(1, topk_ids, topk_weights * centred)
    grad_x += grad_logits @ w_router
    grads = {
        "x": grad_x.float(),
        "w_router": (grad_logits.T @ x).float(),
        "w_gate_up": grad_gate_up,
        "w_down": grad_down,
    }
    return Truth(y.float(), grads)
