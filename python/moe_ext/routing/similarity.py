"""Routing that looks at how similar tokens are: to one another, or to the centres of clusters."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moe_ext.ops import _checks
from moe_ext.ops._precision import no_autocast, wide
from moe_ext.routing._precision import Float32Module


class TokenGraphSmoothing(Float32Module):
    """`z' = A z` with `A = softmax(x M x^T / sqrt(H))`: each token votes with those that resemble it.

    It has the signature of a noise module and stands in its place, in training and at evaluation alike:
    `Router(LinearLogits(H, E), TopK(E, K), noise=TokenGraphSmoothing(H))`.

    Args:
        hidden_size: H.
        tokens_per_sequence: S. The T tokens are sequences of S, which do not see one another; None if they are one.
        causal: a token only hears those before it and itself; autoregressive models need that.
        device: of M, [H, H] float32, which starts as the identity.

    Raises:
        TypeError, ValueError: an option of the wrong type or range.
    """

    side_inputs = ("token_mask",)

    def __init__(
        self,
        hidden_size: int,
        *,
        tokens_per_sequence: int | None = None,
        causal: bool = False,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        _checks.is_int("TokenGraphSmoothing", "hidden_size", hidden_size, low=1)
        if tokens_per_sequence is not None:
            _checks.is_int("TokenGraphSmoothing", "tokens_per_sequence", tokens_per_sequence, low=1)
        self.tokens_per_sequence = tokens_per_sequence
        self.causal = causal
        self.weight = nn.Parameter(torch.empty(hidden_size, hidden_size, dtype=torch.float32, device=device))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """(Re)initialise."""
        nn.init.eye_(self.weight)

    def forward(self, router_logits: Tensor, x: Tensor, *, token_mask: Tensor | None = None) -> Tensor:
        """[T, E] and [T, H] -> [T, E] float32 (float64 for float64 logits).

        Tokens with a False in `token_mask` [T] bool are heard by nobody. With a mask the [S, S] matrix of who hears
        whom is formed.

        Raises:
            ValueError: T is not a multiple of `tokens_per_sequence`.
        """
        num_tokens = router_logits.shape[0]
        size = self.tokens_per_sequence or max(num_tokens, 1)
        if num_tokens % size:
            raise ValueError(
                f"moe_ext.TokenGraphSmoothing: tokens_per_sequence = {size} must divide the number of tokens, "
                f"got {num_tokens}"
            )
        with no_autocast(x.device.type):
            logits = wide(router_logits)
            shape = (num_tokens // size, size)
            x = x.to(logits.dtype)
            hears = None
            if token_mask is not None:
                # What they hold may be NaN.
                x, logits = (rows.masked_fill(~token_mask[:, None], 0) for rows in (x, logits))
                # Everybody hears itself, or a sequence of padding would divide 0 by 0.
                itself = torch.eye(size, dtype=torch.bool, device=x.device)
                hears = token_mask.view(shape)[:, None, :] | itself
                hears = hears.tril() if self.causal else hears
            # Attention with the logits as values never forms the [S, S] matrix where torch knows how to avoid it.
            tokens, values = x.unflatten(0, shape), logits.unflatten(0, shape)
            query = tokens @ self.weight.to(logits.dtype)
            smooth = F.scaled_dot_product_attention(
                query, tokens, values, attn_mask=hears, is_causal=self.causal and hears is None
            )
            return smooth.flatten(0, 1)

    def extra_repr(self) -> str:
        return (
            f"hidden_size={self.weight.shape[0]}, tokens_per_sequence={self.tokens_per_sequence}, causal={self.causal}"
        )


class ClusterLogits(Float32Module):
    """`z_e = -|x - mu_e|^2 / temperature`: the nearest of E learned centres, as a soft choice.

    The softmax of z is the posterior of a mixture of Gaussians of variance temperature / 2.

    Args:
        hidden_size, num_experts: H, E.
        temperature: above 0.
        init_std: standard deviation of the centres' normal initialisation.
        device: of the centres, which are float32.

    Raises:
        TypeError, ValueError: an option of the wrong type or range.
    """

    def __init__(
        self,
        hidden_size: int,
        num_experts: int,
        *,
        temperature: float = 1.0,
        init_std: float = 1.0,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        _checks.is_int("ClusterLogits", "hidden_size", hidden_size, low=1)
        _checks.is_int("ClusterLogits", "num_experts", num_experts, low=1)
        _checks.is_number("ClusterLogits", "temperature", temperature, above=0.0)
        _checks.is_number("ClusterLogits", "init_std", init_std, low=0.0)
        self.temperature = temperature
        self.init_std = init_std
        self.centres = nn.Parameter(torch.empty(num_experts, hidden_size, dtype=torch.float32, device=device))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """(Re)initialise."""
        nn.init.normal_(self.centres, std=self.init_std)

    def forward(self, x: Tensor) -> Tensor:
        """[T, H] -> [T, E] float32 (float64 for float64 x)."""
        with no_autocast(x.device.type):
            x = wide(x)
            centres = self.centres.to(x.dtype)
            squares = x.square().sum(1, keepdim=True) + centres.square().sum(1)
            return (2 * F.linear(x, centres) - squares) / self.temperature

    def extra_repr(self) -> str:
        num_experts, hidden_size = self.centres.shape
        return f"hidden_size={hidden_size}, num_experts={num_experts}, temperature={self.temperature}"
