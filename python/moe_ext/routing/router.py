"""A router as a composition: logits, noise while training, selection."""

from typing import Any, Literal, NamedTuple, overload

import torch
from torch import Tensor, nn

from moe_ext.routing.expert_bias import UpdateMode, update_expert_bias
from moe_ext.routing.jitter import Jitter
from moe_ext.routing.noise import Noise


class RouterOutput(NamedTuple):
    """What a router hands to the experts, and to the losses."""

    topk_weights: Tensor
    """[T, K] float32 (float64 for float64 input); 0 where no expert was chosen."""
    topk_ids: Tensor
    """[T, K] int32; -1 where no expert was chosen."""
    router_logits: Tensor
    """[T, E] float32 (float64 for float64 input), with the noise that the selection saw."""


class NoisyLogits(NamedTuple):
    """What `moe_ext.losses.load_loss` takes, in its order."""

    clean_logits: Tensor
    """[T, E], before the noise."""
    noisy_logits: Tensor
    """[T, E], what the selection saw; without noise (in evaluation) the clean ones."""
    noise_std: Tensor | float
    """The standard deviation of the noise: [T, E], or one number."""


class Router(nn.Module):
    """hidden states -> `RouterOutput`, in parts that can be exchanged one by one.

    * `logits`: [T, H] -> router_logits [T, E]; see `moe_ext.routing.LinearLogits` and its neighbours.
    * `noise`: (router_logits, x) -> router_logits, or None; see `moe_ext.routing.GaussianNoise` and its neighbours.
    * `selection`: router_logits -> `Routing(topk_weights, topk_ids)`; see `moe_ext.routing.TopK` and its neighbours.
    * `jitter`: noise on the input, or None; see `moe_ext.routing.Jitter`.

    `Router(LinearLogits(H, E), TopK(E, 2, renormalize=True))` is Mixtral's router; `moe_ext.routing.published` has it
    and others by name.

    The choice is never differentiated. Gradients reach logits, noise and input through `topk_weights` alone (and
    through losses on `router_logits`): all logits of a token have one where its weights are softmax scores, only the
    chosen ones where these were divided by their sum, and then none where there is one of them.
    """

    takes_token_mask = True

    def __init__(
        self,
        logits: nn.Module,
        selection: nn.Module,
        *,
        noise: nn.Module | None = None,
        jitter: Jitter | None = None,
    ) -> None:
        super().__init__()
        self.logits = logits
        self.noise = noise
        self.selection = selection
        self.jitter = jitter

    @overload
    def forward(
        self,
        x: Tensor,
        *,
        gate_input: Tensor | None = None,
        return_noise: Literal[False] = False,
        **side: Tensor | None,
    ) -> RouterOutput: ...
    @overload
    def forward(
        self, x: Tensor, *, gate_input: Tensor | None = None, return_noise: Literal[True], **side: Tensor | None
    ) -> tuple[RouterOutput, NoisyLogits]: ...
    def forward(
        self, x: Tensor, *, gate_input: Tensor | None = None, return_noise: bool = False, **side: Tensor | None
    ) -> RouterOutput | tuple[RouterOutput, NoisyLogits]:
        """Route.

        Args:
            x: [T, H], any float dtype.
            gate_input: what the logits are computed from instead of x, [T, anything the logits module takes]: pooled
                context, task or modality embeddings (Uni-Perceiver-MoE, arXiv:2206.04674).
            return_noise: return `NoisyLogits` as well, for the loss on the smooth load. Normal noise only::

                output, noise = router(x, return_noise=True)
                loss = moe_ext.losses.load_loss(*noise, top_k)

            side: what the parts ask for beside the logits, such as `token_ids` or `task_ids`, [T] each. A selection
                ignores what it has no use for; logits and noise get what they name in `side_inputs`.
                `token_mask` [T] bool is seen to here: a token whose mask is False gets ids of -1 and weights of 0,
                hence no expert, no place in a capacity and no gradient.

        Raises:
            TypeError: a `token_mask` that is not bool.
            ValueError: a `token_mask` that is not [T]; `return_noise` without normal noise.
        """
        token_mask = side.get("token_mask")
        if token_mask is not None:
            _check_mask(token_mask, x)
        noise = self._with_std(x, gate_input, side) if return_noise else None
        router_logits = self.noisy_logits(x, gate_input=gate_input, **side) if noise is None else noise.noisy_logits
        topk_weights, topk_ids = self.selection(router_logits, **side)
        if token_mask is not None:
            token_mask = token_mask[:, None]
            topk_weights = torch.where(token_mask, topk_weights, 0)
            topk_ids = torch.where(token_mask, topk_ids, -1)
        output = RouterOutput(topk_weights, topk_ids, router_logits)
        return output if noise is None else (output, noise)

    def noisy_logits(self, x: Tensor, *, gate_input: Tensor | None = None, **side: Tensor | None) -> Tensor:
        """All that precedes the selection: jitter, logits, noise. Arguments as in `forward`; [T, E]."""
        gate_input, router_logits = self._clean_logits(x, gate_input, side)
        if self.noise is not None:
            router_logits = self.noise(router_logits, gate_input, **_wanted(self.noise, side))
        return router_logits

    def _clean_logits(
        self, x: Tensor, gate_input: Tensor | None, side: dict[str, Tensor | None]
    ) -> tuple[Tensor, Tensor]:
        """What logits and noise are computed from, and the logits."""
        gate_input = x if gate_input is None else gate_input
        if self.jitter is not None and self.jitter.scope == "router":
            gate_input = self.jitter(gate_input)
        return gate_input, self.logits(gate_input, **_wanted(self.logits, side))

    def _with_std(self, x: Tensor, gate_input: Tensor | None, side: dict[str, Tensor | None]) -> NoisyLogits:
        if not (isinstance(self.noise, Noise) and self.noise.kind == "normal"):
            name = None if self.noise is None else type(self.noise).__name__
            raise ValueError(f"Router: return_noise=True needs GaussianNoise or LearnedNoise, got {name}")
        gate_input, clean = self._clean_logits(x, gate_input, side)
        return NoisyLogits(clean, *self.noise.with_amount(clean, gate_input, **_wanted(self.noise, side)))

    def jitter_input(self, x: Tensor) -> Tensor:
        """x as router and experts shall see it, for the layer to call before it routes.

        Differs from x only while training and with a jitter of `scope="all"`.
        """
        return self.jitter(x) if self.jitter is not None and self.jitter.scope == "all" else x

    def max_rows(self, num_tokens: int, **side: Any) -> int | None:
        """Upper bound of the slots that name an expert, where the selection knows one below T * K; else None.

        Layers pass it on to `moe_ext.fused_experts`, whose buffers then hold no more.
        """
        bound = getattr(self.selection, "max_rows", None)
        return None if bound is None else bound(num_tokens, **side)

    @property
    def score(self) -> str:
        """How the selection turns logits into scores, "softmax" if it does not say: what losses and metrics go by."""
        return getattr(self.selection, "score", "softmax")

    @property
    def nonfinite(self) -> str:
        """What the selection does with logits that are not finite; "propagate" if it does not say."""
        return getattr(self.selection, "nonfinite", "propagate")

    @property
    def expert_bias(self) -> Tensor | None:
        """The selection's [E] buffer, or None if it has none; see `moe_ext.routing.TopK`."""
        return getattr(self.selection, "expert_bias", None)

    def update_expert_bias(self, counts: Tensor, rate: float = 1e-3, mode: UpdateMode = "sign") -> None:
        """Move `expert_bias` against the load `counts` [E]; see `moe_ext.routing.update_expert_bias`.

        Raises:
            RuntimeError: the selection has no `expert_bias`.
        """
        if self.expert_bias is None:
            raise RuntimeError("Router.update_expert_bias: its selection has no expert_bias")
        update_expert_bias(self.expert_bias, counts, rate, mode)


def _wanted(part: nn.Module, side: dict[str, Tensor | None]) -> dict[str, Any]:
    """The side inputs that logits or noise ask for by name."""
    return {name: side[name] for name in getattr(part, "side_inputs", ()) if name in side}


def _check_mask(token_mask: Tensor, x: Tensor) -> None:
    if token_mask.dtype != torch.bool:
        raise TypeError(f"Router: token_mask must be bool, got {token_mask.dtype}")
    if token_mask.shape != x.shape[:1]:
        raise ValueError(f"Router: token_mask must be [num_tokens] = ({x.shape[0]},), got {tuple(token_mask.shape)}")
