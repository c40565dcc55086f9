"""moe_ext's CUDA kernels as a contender: raw ops of the library that is linked with the virtual GPU."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from bench.machine import REPOSITORY
from bench.problem import Problem
from bench.virtual import work
from bench.virtual.contender import Phase, Recorder, layer_grads
from bench.virtual.counts import JobCounts, LaunchCounts

LIBRARY_VARIABLE: Final = "MOE_EXT_VIRTUAL_LIBRARY"


def library() -> Path:
    """Where the library is, or should be."""
    return Path(os.environ.get(LIBRARY_VARIABLE) or REPOSITORY / "build" / "virtual" / "libmoe_ext_virtual.so")


def load_ops() -> Any:
    """torch.ops.moe_ext_virtual. Raises FileNotFoundError where the library was not built."""
    if not library().is_file():
        raise FileNotFoundError(f"{library()} does not exist: build it, or name another in {LIBRARY_VARIABLE}")
    torch.ops.load_library(str(library()))
    return torch.ops.moe_ext_virtual


# Which launch of an op does which job, by a pattern of the kernel's name. The first that fits counts.
_FORWARD_KERNELS: Final = (
    (work.GATE_UP, r"Activate(?!Backward)"),
    (work.DOWN, r"Store"),
    (work.COMBINE, r"combine"),
    (work.PERMUTE, r"permute|chunks"),
)
_BACKWARD_KERNELS: Final = (
    (work.ACT_BACKWARD, r"ActivateBackward"),
    (work.ROWS_OF_X, r"Store"),
    (work.SUM_OF_X, r"combine"),
    (work.WGRAD_DOWN, r"wgrad"),
    (work.RESTORE, r"restore"),
)
_ACTIVATION: Final = {"activation": "swiglu", "alpha": 1.0, "limit": 7.0}
_LAYOUT: Final = {"interleaved": False, "transposed": False, "apply_weights": "output"}
_WORKSPACE: Final = {"workspace_limit": None, "deterministic": False}


def _by_job(recorder: Recorder, patterns: tuple[tuple[str, str], ...]) -> dict[str, JobCounts]:
    """The new launches by job. Of the weight gradients the second is that of w_gate_up."""
    jobs: dict[str, JobCounts] = {}
    for launch in recorder.new_launches():
        job = next((name for name, pattern in patterns if re.search(pattern, launch.kernel)), None)
        if job is None:
            raise LookupError(f"which job does {launch.kernel} do?")
        if job == work.WGRAD_DOWN and job in jobs:
            job = work.WGRAD_GATE_UP
        jobs.setdefault(job, JobCounts()).launches.append(LaunchCounts.of(launch))
    return jobs


class MoeExt:
    """`route` and `fused_experts`, forward with and without what backward needs."""

    name = "moe_ext"
    ours = True

    def __init__(self) -> None:
        self._ops = load_ops()

    def _route(self, logits: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
        """Softmax over the chosen logits."""
        weights, ids = self._ops.route(
            router_logits=logits,
            top_k=top_k,
            score="softmax",
            softmax_after=True,
            bias=None,
            num_groups=1,
            topk_groups=1,
            group_top=1,
            group_fill="-inf",
            renormalize=False,
            eps=1e-20,
            scale=1.0,
            nonfinite="propagate",
        )
        return weights, ids

    def run(
        self, recorder: Recorder, problem: Problem, router_logits: Tensor, phases: Collection[str]
    ) -> dict[str, Phase]:
        """Each phase's jobs and results."""
        ops, shape = self._ops, problem.shape
        x, w_gate_up, w_down = (t.detach() for t in (problem.x, problem.w_gate_up, problem.w_down))
        found: dict[str, Phase] = {}

        def forward(phase: Phase, save: str) -> tuple[Tensor, ...]:
            weights, ids = self._route(problem.logits().float(), shape.top_k)
            recorder.take()
            phase.results["topk_weights"], phase.results["topk_ids"] = self._route(router_logits, shape.top_k)
            phase.jobs[work.ROUTE] = recorder.take()
            y, preact, offsets, slot_to_row = ops.fused_experts(
                x=x,
                w_gate_up=w_gate_up,
                w_down=w_down,
                topk_weights=weights,
                topk_ids=ids,
                b_gate_up=None,
                b_down=None,
                save=save,
                **_ACTIVATION,
                **_LAYOUT,
                **_WORKSPACE,
            )
            phase.jobs |= _by_job(recorder, _FORWARD_KERNELS)
            phase.results["y"] = y
            return weights, ids, preact, offsets, slot_to_row

        if "inference" in phases:
            found["inference"] = Phase()
            forward(found["inference"], "none")
        if "forward" in phases or "backward" in phases:
            found["forward"] = Phase()
            weights, ids, preact, offsets, slot_to_row = forward(found["forward"], "preact")
        if "backward" in phases:
            phase = found["backward"] = Phase()
            grad_x, grad_gate_up, grad_down, grad_weights, *_ = ops.fused_experts_backward(
                grad_y=problem.grad_y,
                x=x,
                w_gate_up=w_gate_up,
                w_down=w_down,
                topk_weights=weights,
                b_gate_up=None,
                b_down=None,
                preact=preact,
                expert_offsets=offsets,
                slot_to_row=slot_to_row,
                x_grad=True,
                weight_grads=True,
                routing_grad=True,
                **_ACTIVATION,
                **_LAYOUT,
                **_WORKSPACE,
            )
            phase.jobs |= _by_job(recorder, _BACKWARD_KERNELS)
            phase.results |= layer_grads(problem, weights, ids, grad_x, grad_weights)
            phase.results |= {"w_gate_up": grad_gate_up, "w_down": grad_down}
        return {name: phase for name, phase in found.items() if name in phases}
