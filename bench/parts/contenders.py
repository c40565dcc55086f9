"""Who computes a part: moe_ext, plain PyTorch, and the routers of Hugging Face's models, which are called as they are
but for their product with the router's weight."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.contender import missing_module
from bench.parts.work import NUM_GROUPS, SCALE, TOPK_GROUPS, Tensors
from bench.timing import Step

# (name of the contender, is it ours, why it cannot run, build): build(tensors) is what is timed.
Entry = tuple[str, bool, Callable[[], str | None], Callable[[Tensors], Step]]
Router = Callable[[Tensors], Callable[[Tensor], tuple[Tensor, Tensor]]]


def _forward(router: Router) -> Callable[[Tensors], Step]:
    def build(tensors: Tensors) -> Step:
        logits, route = tensors.logits.detach(), router(tensors)

        def step() -> object:
            with torch.no_grad():
                return route(logits)

        return step

    return build


def _both(router: Router) -> Callable[[Tensors], Step]:
    def build(tensors: Tensors) -> Step:
        route = router(tensors)

        def step() -> object:
            topk_weights, topk_ids = route(tensors.logits)
            grad = torch.autograd.grad(topk_weights, tensors.logits, tensors.grad_weights.to(topk_weights.dtype))
            return topk_weights, topk_ids, *grad

        return step

    return build


def moe_ext() -> Any:
    """The package, imported once somebody needs it."""
    return importlib.import_module("moe_ext")


def _our_router(**options: Any) -> Router:
    def router(tensors: Tensors) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        bias = {"bias": tensors.bias} if "num_groups" in options else {}
        return lambda logits: moe_ext().route(logits, tensors.sizes.top_k, renormalize=True, **bias, **options)

    return router


_our_softmax: Final = _our_router()
_our_groups: Final = _our_router(
    score="sigmoid", num_groups=NUM_GROUPS, topk_groups=TOPK_GROUPS, group_top=2, scale=SCALE
)


def _torch_softmax(tensors: Tensors) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    def route(logits: Tensor) -> tuple[Tensor, Tensor]:
        topk_weights, topk_ids = logits.softmax(-1, dtype=torch.float32).topk(tensors.sizes.top_k, dim=-1)
        return topk_weights / topk_weights.sum(-1, keepdim=True), topk_ids

    return route


def _torch_groups(tensors: Tensors) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    def route(logits: Tensor) -> tuple[Tensor, Tensor]:
        scores = logits.float().sigmoid()
        groups = (scores.detach() + tensors.bias).unflatten(1, (NUM_GROUPS, -1))
        best = groups.topk(2, dim=-1, sorted=False).values.sum(-1).topk(TOPK_GROUPS, dim=-1, sorted=False).indices
        dropped = torch.ones(groups.shape[:2], dtype=torch.bool).scatter_(1, best, False)
        rank = groups.masked_fill(dropped.unsqueeze(-1), -torch.inf).flatten(1)
        topk_ids = rank.topk(tensors.sizes.top_k, dim=-1, sorted=False).indices
        topk_weights = scores.gather(1, topk_ids)
        return topk_weights / topk_weights.sum(-1, keepdim=True) * SCALE, topk_ids

    return route


class _WithoutLinear:
    """torch.nn.functional, whose `linear` hands its input on: logits go in as hidden states."""

    linear = staticmethod(lambda hidden_states, weight: hidden_states)

    def __getattr__(self, name: str) -> Any:
        return getattr(F, name)


@contextmanager
def _without_linear(module: Any) -> Iterator[None]:
    kept, module.F = module.F, _WithoutLinear()
    try:
        yield
    finally:
        module.F = kept


_QWEN3: Final = "transformers.models.qwen3_moe.modeling_qwen3_moe"
_DEEPSEEK: Final = "transformers.models.deepseek_v3.modeling_deepseek_v3"


def _hf_router(module: Any, router: Any) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    def route(logits: Tensor) -> tuple[Tensor, Tensor]:
        with _without_linear(module):
            _, topk_weights, topk_ids = router(logits)
        return topk_weights, topk_ids

    return route


def _hf_softmax(tensors: Tensors) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    from transformers.models.qwen3_moe.configuration_qwen3_moe import Qwen3MoeConfig

    module: Any = importlib.import_module(_QWEN3)
    sizes = tensors.sizes
    config: Any = Qwen3MoeConfig(
        hidden_size=sizes.num_experts, num_experts=sizes.num_experts, num_experts_per_tok=sizes.top_k,
        norm_topk_prob=True,
    )  # fmt: skip
    with torch.device("meta"):
        return _hf_router(module, module.Qwen3MoeTopKRouter(config))


def _hf_groups(tensors: Tensors) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    from transformers.models.deepseek_v3.configuration_deepseek_v3 import DeepseekV3Config

    module: Any = importlib.import_module(_DEEPSEEK)
    sizes = tensors.sizes
    config: Any = DeepseekV3Config(
        hidden_size=sizes.num_experts, n_routed_experts=sizes.num_experts, num_experts_per_tok=sizes.top_k,
        n_group=NUM_GROUPS, topk_group=TOPK_GROUPS, norm_topk_prob=True, routed_scaling_factor=SCALE,
    )  # fmt: skip
    with torch.device("meta"):
        router = module.DeepseekV3TopkRouter(config)
    router.e_score_correction_bias = tensors.bias
    return _hf_router(module, router)


def _no_grad(function: Callable[[Tensors], object]) -> Callable[[Tensors], Step]:
    def build(tensors: Tensors) -> Step:
        def step() -> object:
            with torch.no_grad():
                return function(tensors)

        return step

    return build


def _our_permute(tensors: Tensors) -> Any:
    return moe_ext().permute(tensors.topk_ids, tensors.sizes.num_experts)


def _torch_permute(tensors: Tensors) -> tuple[Tensor, Tensor, Tensor]:
    expert, row_to_slot = tensors.topk_ids.flatten().sort(stable=True)
    offsets = torch.bincount(expert, minlength=tensors.sizes.num_experts).cumsum(0, dtype=torch.int32)
    slot_to_row = torch.empty_like(row_to_slot)
    slot_to_row[row_to_slot] = torch.arange(len(row_to_slot))
    return offsets, row_to_slot, slot_to_row


def _our_gather(tensors: Tensors) -> Step:
    perm = _our_permute(tensors)
    return lambda: moe_ext().gather_rows(tensors.x, perm)


def _torch_gather(tensors: Tensors) -> Step:
    token = _torch_permute(tensors)[1] // tensors.sizes.top_k
    return lambda: tensors.x.index_select(0, token)


def _our_combine(tensors: Tensors) -> Step:
    perm = _our_permute(tensors)
    return lambda: moe_ext().combine(tensors.rows, tensors.topk_weights, perm)


def _torch_index_add(tensors: Tensors) -> Step:
    row_to_slot = _torch_permute(tensors)[1]
    token = row_to_slot // tensors.sizes.top_k

    def step() -> object:
        weights = tensors.topk_weights.flatten()[row_to_slot].unsqueeze(1).to(tensors.dtype)
        return torch.zeros_like(tensors.x).index_add_(0, token, tensors.rows * weights)

    return step


def _torch_sum(tensors: Tensors) -> Step:
    slot_to_row = _torch_permute(tensors)[2]

    def step() -> object:
        by_slot = tensors.rows[slot_to_row].view(*tensors.topk_ids.shape, -1)
        return (by_slot * tensors.topk_weights.unsqueeze(-1).to(tensors.dtype)).sum(1)

    return step


def _torch_permute_gather(tensors: Tensors) -> Tensor:
    return tensors.x.index_select(0, _torch_permute(tensors)[1] // tensors.sizes.top_k)


def ours(build: Callable[[Tensors], Step]) -> Entry:
    """moe_ext's entry."""
    return "moe_ext", True, partial(missing_module, "moe_ext"), build


def others(name: str, build: Callable[[Tensors], Step], module: str = "torch") -> Entry:
    """The entry of somebody who needs `module`."""
    return name, False, partial(missing_module, module), build


def _routers(wrap: Callable[[Router], Callable[[Tensors], Step]], *routers: Router) -> list[Entry]:
    own, plain, theirs = routers
    module, name = (_QWEN3, "hf_qwen3") if theirs is _hf_softmax else (_DEEPSEEK, "hf_deepseek_v3")
    return [ours(wrap(own)), others("torch", wrap(plain)), others(name, wrap(theirs), module)]


ENTRIES: Final[dict[str, list[Entry]]] = {
    "route softmax": _routers(_forward, _our_softmax, _torch_softmax, _hf_softmax),
    "route softmax fwdbwd": _routers(_both, _our_softmax, _torch_softmax, _hf_softmax),
    "route grouped sigmoid": _routers(_forward, _our_groups, _torch_groups, _hf_groups),
    "route grouped sigmoid fwdbwd": _routers(_both, _our_groups, _torch_groups, _hf_groups),
    "permute": [ours(_no_grad(_our_permute)), others("torch", _no_grad(_torch_permute))],
    "gather_rows": [ours(_our_gather), others("torch", _torch_gather)],
    "permute + gather_rows": [
        ours(_no_grad(lambda tensors: moe_ext().gather_rows(tensors.x, _our_permute(tensors)))),
        others("torch", _no_grad(_torch_permute_gather)),
    ],
    "combine": [ours(_our_combine), others("torch_index_add", _torch_index_add), others("torch_sum", _torch_sum)],
}
