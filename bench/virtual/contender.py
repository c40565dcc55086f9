"""What a contender gives: the launches of each job, and results to check."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from bench.problem import Problem
from bench.virtual.counts import JobCounts, LaunchCounts

if TYPE_CHECKING:
    import emulator


@dataclass
class Phase:
    """Of one phase: launches by job, and results by name: y, topk_weights and topk_ids (of `router_logits`), or the
    gradients of `Problem.leaves`."""

    jobs: dict[str, JobCounts] = field(default_factory=dict)
    results: dict[str, Tensor] = field(default_factory=dict)


class Recorder:
    """Hands out launches in the order they were made, each once."""

    def __init__(self, gpu: emulator.Gpu) -> None:
        self.gpu = gpu
        self._taken = len(gpu.launches)

    def new_launches(self) -> list[emulator.Launch]:
        """Those since the last call."""
        launches = self.gpu.launches[self._taken :]
        self._taken += len(launches)
        return launches

    def take(self) -> JobCounts:
        """The same, as counts."""
        return JobCounts([LaunchCounts.of(launch) for launch in self.new_launches()])


class Contender(Protocol):
    """Runs phases of the layer on the recorder's GPU, whose memory the tensors are in.

    The job `route` is counted on router_logits [T, any], float32, whatever the problem's own router does.
    """

    name: str
    ours: bool

    def run(
        self, recorder: Recorder, problem: Problem, router_logits: Tensor, phases: Collection[str]
    ) -> dict[str, Phase]:
        """Of the phases asked for, jobs and results."""
        ...


@torch.no_grad()
def layer_grads(
    problem: Problem, weights: Tensor, ids: Tensor, grad_x: Tensor, grad_weights: Tensor
) -> dict[str, Tensor]:
    """Gradients of x and w_router, from those of the experts' input and of the routing weights.

    The weights are a softmax over the chosen logits. The router's two products are nobody's kernels: they are done here
    in float64, for the contenders alike, so that results can be compared with the truth of the whole layer.
    """
    weights, grad_weights = weights.double(), grad_weights.double()
    centred = grad_weights - (weights * grad_weights).sum(dim=-1, keepdim=True)
    grad_logits = torch.zeros(weights.size(0), problem.shape.num_experts, dtype=torch.float64)
    grad_logits.scatter_(1, ids.long(), weights * centred)
    x, w_router = problem.x.detach().double(), problem.w_router.detach().double()
    return {"x": grad_x.double() + grad_logits @ w_router, "w_router": grad_logits.T @ x}
