"""Routers as research papers describe them. Every function takes H, E and K first; T is the number of tokens."""

import math
from typing import Literal

import torch

from moe_ext.routing.fixed_logits import RandomLogits
from moe_ext.routing.hierarchical import HierarchicalRouter
from moe_ext.routing.jitter import Jitter
from moe_ext.routing.logits import CosineLogits, LinearLogits
from moe_ext.routing.noise import GaussianNoise, LearnedNoise
from moe_ext.routing.router import Router
from moe_ext.routing.selection import TopK
from moe_ext.routing.task import TaskLogits
from moe_ext.routing.top2 import SecondExpert, Top2
from moe_ext.routing.weights import NormalizeWeights, Reweigh

Device = torch.device | str | None


def dense(hidden_size: int, num_experts: int, *, device: Device = None) -> Router:
    """All experts, weighed by the softmax: the mixtures of Jacobs et al. 1991 and Eigen et al. (arXiv:1312.4314).

    K = E slots, best first. Every expert and every logit gets a gradient; no balance loss is needed.
    """
    return Router(LinearLogits(hidden_size, num_experts, device=device), TopK(num_experts, num_experts))


def noisy_top_k(
    hidden_size: int,
    num_experts: int,
    top_k: int = 4,
    *,
    min_noise_std: float = 0.0,
    noise_at_eval: bool = False,
    init_std: float | None = 0.0,
    device: Device = None,
) -> Router:
    """Noisy top-k gating (Shazeer et al. 2017, arXiv:1701.06538).

    Both gates start at zero, so that at first the noise, with a deviation of ln 2, spreads the tokens evenly. The
    paper's losses on importance and load belong to it, 0.1 times each::

        (topk_weights, topk_ids, _), noise = router(x, return_noise=True)
        loss = 0.1 * losses.importance_loss(topk_weights, topk_ids, E) + 0.1 * losses.load_loss(*noise, K)

    Args:
        hidden_size, num_experts, top_k: H, E, K.
        min_noise_std: added to the softplus: 1e-2 in public ports, 0 in the paper.
        noise_at_eval: noise in evaluation, too, as in the public code of Mod-Squad.
        init_std: of both gates, see `LinearLogits`.
        device: of the parameters.
    """
    raw_std = LinearLogits(hidden_size, num_experts, init_std=init_std, device=device)
    return Router(
        LinearLogits(hidden_size, num_experts, init_std=init_std, device=device),
        TopK(num_experts, top_k, softmax_after=True),
        noise=LearnedNoise(raw_std, min_std=min_noise_std, at_eval=noise_at_eval),
    )


def hierarchical(
    hidden_size: int,
    num_groups: int,
    group_size: int,
    top_groups: int = 2,
    top_k: int = 2,
    *,
    noisy: bool = True,
    device: Device = None,
) -> HierarchicalRouter:
    """Two levels of noisy top-k gating (arXiv:1701.06538, appendix B): groups, then experts in each chosen group.

    Args:
        hidden_size: H. num_groups, group_size: the experts are `num_groups * group_size`.
        top_groups, top_k: groups per token, experts in each of them.
        noisy: as in `noisy_top_k`; else both gates are linear, without noise, and start as `nn.Linear` does.
        device: of the parameters.
    """

    def level(num_logits: int, num_choices: int, choices: int) -> Router:
        if not noisy:
            logits = LinearLogits(hidden_size, num_logits, device=device)
            return Router(logits, TopK(num_choices, choices, softmax_after=True))
        router = noisy_top_k(hidden_size, num_logits, device=device, top_k=1)
        return Router(router.logits, TopK(num_choices, choices, softmax_after=True), noise=router.noise)

    primary = level(num_groups, num_groups, top_groups)
    secondary = level(num_groups * group_size, group_size, top_k)
    return HierarchicalRouter(primary, secondary, num_groups=num_groups)


def gshard(
    hidden_size: int,
    num_experts: int = 2048,
    *,
    second_expert: SecondExpert = "random",
    renormalize: bool = True,
    threshold: float = 0.5,
    draw_at_eval: bool = False,
    device: Device = None,
) -> Router:
    """GShard's top-2 gating (Lepikhin et al. 2020, arXiv:2006.16668, algorithm 1).

    Belongs to a capacity of 2 T / E per group, filled by first choices, then second ones, and to a balance loss on
    first choices.

    Args:
        hidden_size, num_experts: H, E.
        second_expert, renormalize, threshold, draw_at_eval: see `Top2`. The paper drops the second expert at random
            and normalises before capacity. fairseq's default and DeepSpeed draw it by its probability ("sample") and
            normalise what capacity kept (`renormalize=False`, and a capacity that does).
        device: of the parameters.
    """
    return Router(
        LinearLogits(hidden_size, num_experts, device=device),
        Top2(
            num_experts,
            second_expert=second_expert,
            renormalize=renormalize,
            threshold=threshold,
            at_eval=draw_at_eval,
        ),
    )


def glam(
    hidden_size: int, num_experts: int = 64, *, second_expert: SecondExpert = "random", device: Device = None
) -> Router:
    """GLaM (Du et al. 2021, arXiv:2112.06905): GShard's gate over 64 experts."""
    return gshard(hidden_size, num_experts, second_expert=second_expert, device=device)


def st_moe(
    hidden_size: int,
    num_experts: int = 32,
    *,
    second_expert: SecondExpert = "random",
    threshold: float = 0.2,
    device: Device = None,
) -> Router:
    """ST-MoE (Zoph et al. 2022, arXiv:2202.08906): GShard's pair, the second kept with probability min(1, g_2 / 0.2).

    ST-MoE-32B, which has 269B parameters, has 64 experts; smaller models have fewer. Belongs to a router z-loss and to
    a balance loss on first choices.
    """
    return gshard(hidden_size, num_experts, second_expert=second_expert, threshold=threshold, device=device)


def switch(
    hidden_size: int,
    num_experts: int = 128,
    *,
    jitter: float = 1e-2,
    init_scale: float = 0.1,
    device: Device = None,
) -> Router:
    """Switch Transformer (Fedus et al. 2021, arXiv:2101.03961): the best expert, weighed by its probability.

    The weight isn't renormalised (it would be 1), so all logits have a gradient. Belongs to a capacity factor of 1.0
    to 1.25 (2.0 in evaluation) and the load balancing loss with a coefficient of 1e-2.

    Args:
        hidden_size, num_experts: H, E.
        jitter: eps of the noise on the router's input while training.
        init_scale: the weight starts as a truncated normal of deviation sqrt(init_scale / H).
        device: of the parameters.
    """
    init_std = math.sqrt(init_scale / hidden_size)
    return Router(
        LinearLogits(hidden_size, num_experts, init_std=init_std, truncate=True, device=device),
        TopK(num_experts, 1),
        jitter=Jitter(jitter),
    )


def v_moe(
    hidden_size: int,
    num_experts: int = 32,
    top_k: int = 2,
    *,
    noise_std: float | None = None,
    device: Device = None,
) -> Router:
    """V-MoE (Riquelme et al. 2021, arXiv:2106.05974): noise of deviation 1/E, softmax, top-k, not renormalised.

    Belongs to a capacity in which tokens come in the order of their best score (batch-prioritised routing), and to the
    mean of two losses, 0.005 times::

        (topk_weights, topk_ids, _), noise = router(x, return_noise=True)
        loss = losses.soft_importance_loss(noise.clean_logits) + losses.load_loss(*noise, K, exclude_self=False)

    Args:
        hidden_size, num_experts, top_k: H, E, K.
        noise_std: of the noise on the logits while training; None for 1/E.
        device: of the parameters.
    """
    return Router(
        LinearLogits(hidden_size, num_experts, device=device),
        TopK(num_experts, top_k),
        noise=GaussianNoise(noise_std),
    )


def x_moe(
    hidden_size: int,
    num_experts: int = 32,
    top_k: int = 1,
    *,
    score: Literal["softmax", "sigmoid"] = "softmax",
    routing_dim: int | None = None,
    temperature: float | None = None,
    normalize_input: bool = True,
    nonfinite: Literal["propagate", "sanitize", "error", "min"] = "propagate",
    released: bool = False,
    device: Device = None,
) -> Router:
    """X-MoE (Chi et al. 2022, arXiv:2204.09179): cosines in E / 2 dimensions over a learned temperature.

    Args:
        hidden_size, num_experts, top_k: H, E, K.
        score: softmax over the experts, or the sigmoid of the chosen ones.
        routing_dim: None for E / 2, at least 1.
        temperature: at the start; None for 0.3 with softmax, 0.07 with sigmoid.
        normalize_input: divide the projected token by its norm.
        nonfinite: "min" in the released code, see `TopK`.
        released: follow the released code instead of the paper: 16 dimensions, tokens not normalised, no temperature,
            `nonfinite="min"`.
        device: of the parameters.
    """
    start = temperature if temperature is not None else 0.3 if score == "softmax" else 0.07
    logits = CosineLogits(
        hidden_size,
        num_experts,
        routing_dim if routing_dim is not None else 16 if released else max(num_experts // 2, 1),
        normalize_input=normalize_input and not released,
        temperature=None if released else start,
        device=device,
    )
    nonfinite = "min" if released else nonfinite
    if score == "softmax":
        return Router(logits, TopK(num_experts, top_k, nonfinite=nonfinite))
    # The logits rank: their sigmoids tie where they round to 1.
    return Router(logits, Reweigh(TopK(num_experts, top_k, score="none", nonfinite=nonfinite), "sigmoid"))


def mixture_of_attention_heads(
    hidden_size: int, num_experts: int, top_k: int, *, normalize: bool = True, device: Device = None
) -> Router:
    """MoA (Zhang et al. 2022, arXiv:2210.05144): softmax, top-k, divided by a sum that backward takes for a constant.

    Args:
        hidden_size, num_experts, top_k: H, E, K.
        normalize: False for the weights of the released code, which leaves the division out.
        device: of the parameters.
    """
    selection = TopK(num_experts, top_k)
    return Router(
        LinearLogits(hidden_size, num_experts, device=device),
        NormalizeWeights(selection, detach=True) if normalize else selection,
    )


def mod_squad(
    hidden_size: int,
    num_experts: int,
    top_k: int,
    num_tasks: int,
    *,
    noisy: bool = True,
    noise_at_eval: bool = True,
    prob_floor: float = 1e-4,
    device: Device = None,
) -> Router:
    """Mod-Squad (Chen et al. 2022, arXiv:2212.08066): a noisy gate per task; call it with `task_ids=`.

    Args:
        hidden_size, num_experts, top_k, num_tasks: H, E, K, number of tasks.
        noisy: learned noise, a gate per task, 1e-2 added to its deviation.
        noise_at_eval: True in the released code, which never switches the noise off.
        prob_floor: added to every probability by the released code.
        device: of the parameters.
    """

    def gate() -> TaskLogits:
        return TaskLogits(hidden_size, num_experts, num_tasks, init_std=0.0, device=device)

    noise = LearnedNoise(gate(), min_std=1e-2, at_eval=noise_at_eval) if noisy else None
    return Router(gate(), NormalizeWeights(TopK(num_experts, top_k), p=None, floor=prob_floor), noise=noise)


def random_moe(num_experts: int, top_k: int, *, noise_std: float = 1e-3) -> Router:
    """Experts at random with weights of nearly 1/E: the baseline of Mod-Squad's code. Nothing is learned."""
    return Router(RandomLogits(num_experts, std=noise_std), TopK(num_experts, top_k))
