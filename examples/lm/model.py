"""A small decoder in the style of DeepSeek-V3: RMSNorm, rotary attention, one dense layer, then MoE layers.

Each MoE layer is `moe_ext.nn.MoE`: a shared expert, many narrow routed experts, sigmoid scores and a selection
bias that keeps the load even without an auxiliary loss (DeepSeek-AI 2024, arXiv:2412.19437, section 2.1.2).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from moe_ext.nn import MoE

from .data import VOCAB_SIZE

KVCache = list[tuple[Tensor, Tensor]]


class ConfigError(ValueError):
    """Sizes that do not fit together, or a file that holds no model of this demo."""


@dataclass(frozen=True)
class ModelConfig:
    """Everything that decides the shapes of the model."""

    hidden: int = 128
    layers: int = 4
    heads: int = 4
    experts: int = 32
    top_k: int = 4
    intermediate: int = 32  # of one routed expert; the shared expert and the dense layer are multiples of it
    context: int = 256

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")
        if self.hidden % self.heads or self.hidden // self.heads % 2:
            raise ConfigError(f"hidden ({self.hidden}) must be an even multiple of heads ({self.heads})")
        if self.top_k > self.experts:
            raise ConfigError(f"top_k ({self.top_k}) must not exceed experts ({self.experts})")
        if self.layers < 2:
            raise ConfigError("layers must be at least 2: the first is dense, MoE layers follow")


class Attention(nn.Module):
    """Causal self-attention with rotary positions and normalised queries and keys.

    Only the two projections follow autocast. What lies between stays in float32: it has few operations, and on a
    CPU they are faster so.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads, self.context = config.heads, config.context
        self.head_dim = config.hidden // config.heads
        self.qkv = nn.Linear(config.hidden, 3 * config.hidden, bias=False)
        self.out = nn.Linear(config.hidden, config.hidden, bias=False)

    def rotate(self, x: Tensor, start: int) -> Tensor:
        """Rotary positions (Su et al. 2021, arXiv:2104.09864): x [B, T, heads, D] turned by position start + t."""
        half = self.head_dim // 2
        frequencies = 10000.0 ** (-torch.arange(half, dtype=torch.float32, device=x.device) / half)
        positions = torch.arange(start, start + x.shape[1], dtype=torch.float32, device=x.device)
        angles = torch.outer(positions, frequencies)[:, None, :]
        turned = torch.view_as_complex(x.unflatten(-1, (half, 2))) * torch.polar(torch.ones_like(angles), angles)
        return torch.view_as_real(turned).flatten(-2)

    def forward(self, x: Tensor, cache: KVCache | None, layer: int, start: int) -> Tensor:
        """x [B, T, H] at positions start..start+T; `cache[layer]` keeps the last `context` keys and values."""
        qkv = self.qkv(x).float().unflatten(-1, (3 * self.heads, self.head_dim))
        with torch.autocast(x.device.type, enabled=False):
            qk, v = qkv.split((2 * self.heads, self.heads), dim=2)
            q, k = self.rotate(F.rms_norm(qk, (self.head_dim,)), start).chunk(2, dim=2)
            q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
            if cache is not None:
                if layer < len(cache):
                    k, v = torch.cat((cache[layer][0], k), dim=2), torch.cat((cache[layer][1], v), dim=2)
                    k, v = k[:, :, -self.context :], v[:, :, -self.context :]
                    cache[layer] = (k, v)
                else:
                    cache.append((k, v))
            # A single new byte sees the whole cache; only a longer input has a future to hide.
            y = F.scaled_dot_product_attention(q, k, v, is_causal=q.shape[2] > 1)
        return self.out(y.transpose(1, 2).flatten(2))


class DenseMLP(nn.Module):
    """SwiGLU feed-forward, the first layer's."""

    def __init__(self, hidden: int, intermediate: int) -> None:
        super().__init__()
        self.gate_up = nn.Linear(hidden, 2 * intermediate, bias=False)
        self.down = nn.Linear(intermediate, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class Block(nn.Module):
    """Pre-norm attention and feed-forward, each with a residual connection."""

    def __init__(self, config: ModelConfig, feed_forward: nn.Module) -> None:
        super().__init__()
        self.norm_attention, self.norm_feed_forward = nn.RMSNorm(config.hidden), nn.RMSNorm(config.hidden)
        self.attention, self.feed_forward = Attention(config), feed_forward

    def forward(self, x: Tensor, cache: KVCache | None, layer: int, start: int) -> Tensor:
        x = x + self.attention(self.norm_attention(x), cache, layer, start)
        return x + self.feed_forward(self.norm_feed_forward(x))


def deepseek_style(config: ModelConfig) -> MoE:
    """A shared expert, sigmoid scores, and balance by a selection bias."""
    return MoE(
        config.hidden,
        config.intermediate,
        config.experts,
        config.top_k,
        score="sigmoid",
        renormalize=True,
        num_shared_experts=1,
        aux_loss_free=True,
    )


class LanguageModel(nn.Module):
    """Bytes in, logits of the next byte out. `make_moe` builds the MoE layers."""

    def __init__(self, config: ModelConfig, make_moe: Callable[[ModelConfig], MoE] = deepseek_style) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(VOCAB_SIZE, config.hidden)
        dense = DenseMLP(config.hidden, (config.top_k + 1) * config.intermediate)  # as wide as a token's experts
        moes = [make_moe(config) for _ in range(config.layers - 1)]
        self.blocks = nn.ModuleList(Block(config, feed_forward) for feed_forward in (dense, *moes))
        self.norm = nn.RMSNorm(config.hidden)
        self.head = nn.Linear(config.hidden, VOCAB_SIZE, bias=False)
        self._scale_weights()

    @torch.no_grad()
    def _scale_weights(self) -> None:
        # Every layer starts as the identity, and the first predictions are nearly uniform. On a budget this small it
        # learns clearly faster than from the usual small random output projections.
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.head.weight.mul_(0.1)
        for name, weight in self.named_parameters():
            if name.endswith(("attention.out.weight", "down.weight", "w_down")):
                weight.zero_()

    def moe_layers(self) -> list[MoE]:
        """The MoE layers, first to last."""
        return [block.feed_forward for block in self.blocks if isinstance(block.feed_forward, MoE)]

    def forward(self, tokens: Tensor, cache: KVCache | None = None, start: int = 0) -> Tensor:
        """tokens [B, T] int64 at positions start..start+T -> logits [B, T, 256] float32.

        With a `cache` (begin with an empty list) earlier tokens need not be given again.
        """
        x = self.embedding(tokens)
        for layer, block in enumerate(self.blocks):
            x = block(x, cache, layer, start)
        return self.head(self.norm(x)).float()


def save_model(model: LanguageModel, path: Path) -> None:
    """Writes the weights as safetensors, with the sizes as JSON under "config" in the file's metadata."""
    state = {name: tensor.contiguous().cpu() for name, tensor in model.state_dict().items()}
    # One entry only: safetensors writes several in an arbitrary order, and equal models should be equal files.
    save_file(state, path, metadata={"config": json.dumps(asdict(model.config))})


def load_model(path: Path, device: torch.device) -> LanguageModel:
    """Reads what `save_model` wrote; raises ConfigError for anything else."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            names = file.keys()
            state = {name: file.get_tensor(name) for name in names}
    except FileNotFoundError as error:
        raise ConfigError(f"no model file {path}") from error
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{path} is not a safetensors file: {error}") from error
    if "config" not in metadata:
        raise ConfigError(f"{path} has no model config in its metadata: it was not written by this demo")
    model = LanguageModel(ModelConfig(**json.loads(metadata["config"])))
    model.load_state_dict(state)
    return model.to(device)
