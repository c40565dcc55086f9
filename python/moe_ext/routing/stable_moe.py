"""StableMoE: a router that is distilled into one on token ids, which then routes alone."""

import torch
from torch import Tensor, nn

from moe_ext.ops import _checks, route
from moe_ext.ops._precision import no_autocast, wide
from moe_ext.routing._precision import Float32Module
from moe_ext.routing._side_inputs import checked_ids
from moe_ext.routing.balanced import sigmoid_at
from moe_ext.routing.router import RouterOutput


class TokenRouter(Float32Module):
    """Logits from token ids alone, `<embedding(id), c_e>`: the light router that StableMoE distils into.

    Args:
        vocab_size: V. num_experts: E.
        embedding_dim: width of the word embedding, 50 in the paper.
        device: of the parameters, which are float32.

    Raises:
        TypeError, ValueError: an option of the wrong type or range.
    """

    def __init__(
        self,
        vocab_size: int,
        num_experts: int,
        *,
        embedding_dim: int = 50,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        _checks.is_int("TokenRouter", "vocab_size", vocab_size, low=1)
        _checks.is_int("TokenRouter", "num_experts", num_experts, low=1)
        _checks.is_int("TokenRouter", "embedding_dim", embedding_dim, low=1)
        self.vocab_size = vocab_size
        self.embedding = nn.Embedding(vocab_size, embedding_dim, dtype=torch.float32, device=device)
        self.centroids = nn.Parameter(torch.empty(num_experts, embedding_dim, dtype=torch.float32, device=device))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """(Re)initialise."""
        self.embedding.reset_parameters()
        nn.init.orthogonal_(self.centroids, gain=0.1)

    def forward(self, token_ids: Tensor) -> Tensor:
        """[T] integers in 0..V-1 -> [T, E] float32."""
        token_ids = checked_ids("TokenRouter", "token_ids", token_ids, num_ids=self.vocab_size)
        with no_autocast(token_ids.device.type):
            return self.embedding(token_ids) @ self.centroids.T


class StableMoERouter(Float32Module):
    """Greedy top-1 routing in two stages (StableMoE; Dai et al. 2022, arXiv:2204.08396, section 3).

    With the affinities `s = logits(x)`, a token goes to one expert with weight sigmoid(s of that expert).

    * Stage 1: the expert with the largest s. Train with the paper's balance loss on `router_logits`, and with the cross
      entropy of `router.token_router(token_ids)` against `topk_ids`, which distils the choice into the token router.
    * Stage 2, after `begin_second_stage()`: the expert that the token router prefers, so a token id has the same
      expert at every step. The token router is frozen and takes no loss; s only gives the weight.

    No gradient flows through the choice. The stage is a buffer: it is saved with the model, and switching it neither
    recompiles nor waits for a device.

    Args:
        logits: [T, H] -> affinities [T, E]; in the paper linear without a bias.
        token_router: token_ids [T] -> [T, E]: a `TokenRouter`, or anything larger, such as one that sees n-grams.
    """

    takes_token_mask = True
    second_stage: Tensor

    def __init__(self, logits: nn.Module, token_router: nn.Module) -> None:
        super().__init__()
        self.logits = logits
        self.token_router = token_router
        device = next((tensor.device for tensor in self.parameters()), None)
        self.register_buffer("second_stage", torch.zeros((), dtype=torch.bool, device=device))

    def reset_parameters(self) -> None:
        """Back to the first stage; the parts have their own."""
        self.second_stage.fill_(False)

    def begin_second_stage(self) -> None:
        """From now on the token router chooses; its parameters stop requiring gradients."""
        self.second_stage.fill_(True)
        self.token_router.requires_grad_(False)

    def forward(
        self,
        x: Tensor,
        *,
        token_ids: Tensor | None = None,
        gate_input: Tensor | None = None,
        token_mask: Tensor | None = None,
        **_: object,
    ) -> RouterOutput:
        """Route.

        Args:
            x: [T, H], any float dtype.
            token_ids: [T] int32 or int64, the ids that the token router is asked about; needed in both stages.
            gate_input: what the affinities are computed from instead of x.
            token_mask: [T] bool. Tokens with False get ids of -1 and weights of 0, and their token ids may be anything.

        Returns:
            `RouterOutput` with K = 1; `router_logits` are the affinities.
        """
        token_ids = checked_ids("StableMoERouter", "token_ids", token_ids, num_tokens=x.shape[0])
        if token_mask is not None:
            token_ids = token_ids.masked_fill(~token_mask, 0)
        affinities = wide(self.logits(x if gate_input is None else gate_input))
        with torch.no_grad():
            preferred = self.token_router(token_ids).to(affinities.dtype)
            topk_ids = route(torch.where(self.second_stage, preferred, affinities), 1, score="none").topk_ids
            if token_mask is not None:
                topk_ids = topk_ids.masked_fill(~token_mask[:, None], -1)
        return RouterOutput(sigmoid_at(affinities, topk_ids), topk_ids, affinities)
