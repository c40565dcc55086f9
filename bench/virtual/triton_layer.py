"""The Triton yardstick as a contender: its launches, sorted by job."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TypeVar

from torch import Tensor

from bench.problem import Problem
from bench.triton_yardstick.configs import rows_of_a_tile
from bench.triton_yardstick.layer import Layer, Routing
from bench.virtual import work
from bench.virtual.contender import Phase, Recorder, layer_grads

Result = TypeVar("Result")


class TritonYardstick:
    """See `bench.triton_yardstick`. It sorts on the host: the jobs that only touch indices have no launches."""

    name = "triton"
    ours = False

    def run(
        self, recorder: Recorder, problem: Problem, router_logits: Tensor, phases: Collection[str]
    ) -> dict[str, Phase]:
        """Each phase's jobs and results."""
        shape = problem.shape
        x, grad_y = problem.x.detach(), problem.grad_y
        layer = Layer(recorder.gpu, problem.w_gate_up.detach(), problem.w_down.detach())
        found: dict[str, Phase] = {}

        def job(phase: Phase, name: str, function: Callable[[], Result]) -> Result:
            result = function()
            phase.jobs[name] = recorder.take()
            return result

        def forward(phase: Phase, training: bool) -> tuple[Routing, Tensor, Tensor, Tensor, Tensor, Tensor]:
            weights, ids = layer.route(problem.logits().float(), shape.top_k)
            recorder.take()
            phase.results["topk_weights"], phase.results["topk_ids"] = job(
                phase, work.ROUTE, lambda: layer.route(router_logits, shape.top_k)
            )
            routing = Routing.of(ids, shape.num_experts, rows_of_a_tile(shape.num_rows / shape.num_experts))
            z, act = job(phase, work.GATE_UP, lambda: layer.gate_up(x, routing, training))
            early, late = (None, weights) if training else (weights, None)
            rows = job(phase, work.DOWN, lambda: layer.down(act, routing, early, training))
            phase.results["y"] = job(phase, work.COMBINE, lambda: layer.combine(rows, routing, late))
            return routing, weights, ids, z, act, rows

        if "inference" in phases:
            found["inference"] = Phase()
            forward(found["inference"], training=False)
        if "forward" in phases or "backward" in phases:
            found["forward"] = Phase()
            routing, weights, ids, z, act, rows = forward(found["forward"], training=True)
        if "backward" in phases:
            phase = found["backward"] = Phase()

            def activation_backward() -> tuple[Tensor, Tensor, Tensor]:
                grad_rows, grad_weights = layer.combine_backward(grad_y, rows, weights, routing)
                return grad_rows, grad_weights, layer.activation_backward(grad_rows, z, routing)

            grad_rows, grad_weights, grad_z = job(phase, work.ACT_BACKWARD, activation_backward)
            grad_down = job(phase, work.WGRAD_DOWN, lambda: layer.wgrad(grad_rows, act, routing))
            grad_gate_up = job(
                phase, work.WGRAD_GATE_UP, lambda: layer.wgrad(grad_z, layer.gather(x, routing), routing)
            )
            of_x = job(phase, work.ROWS_OF_X, lambda: layer.grad_rows_of_x(grad_z, routing))
            grad_x = job(phase, work.SUM_OF_X, lambda: layer.combine(of_x, routing, None))
            phase.results |= layer_grads(problem, weights, ids, grad_x, grad_weights)
            phase.results |= {"w_gate_up": grad_gate_up, "w_down": grad_down}
        return {name: phase for name, phase in found.items() if name in phases}
