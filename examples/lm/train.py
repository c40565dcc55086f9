"""The training loop: a step, a schedule that ends on time, and a record of what happened."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .data import BatchSampler
from .model import LanguageModel

WARMUP_STEPS = 10
FINAL_LEARNING_RATE = 0.02  # as a share of the peak
# Adam moves every weight by about the learning rate, but a byte's embedding only in steps where that byte occurs, and
# it has far to go. A large rate for this one matrix is worth more here than any other choice.
EMBEDDING_LEARNING_RATE = 30.0  # as a multiple of the others'
SHORTEST_WINDOW = 1 / 8  # of the context, at the beginning; see window_length
BIAS_RATE_END = 0.9  # share of the training after which the selection bias stands still, as in DeepSeek-V3


@dataclass(frozen=True)
class TrainConfig:
    """How to train. `steps` decides the length if given, else the time budget does."""

    batch: int = 2
    """Windows of full length in a step; there are more of them as long as they are shorter."""
    learning_rate: float = 3e-3
    weight_decay: float = 0.1
    bias_rate: float = 0.01
    steps: int | None = None
    seed: int = 0
    dtype: torch.dtype = torch.float32


@dataclass
class History:
    """What the plots and the summary are made of; losses in bits per byte."""

    tokens: int = 0
    windows: list[int] = field(default_factory=list)
    """Length of each step's windows in bytes."""
    seconds: list[float] = field(default_factory=list)
    train_bits: list[float] = field(default_factory=list)
    val_steps: list[int] = field(default_factory=list)
    val_bits: list[float] = field(default_factory=list)
    loads: list[Tensor] = field(default_factory=list)
    """Per step [MoE layers, experts] int64: how many slots each expert got."""

    @property
    def steps(self) -> int:
        return len(self.train_bits)

    def max_violation(self, last: float = 0.1) -> list[float]:
        """Per layer `max load / mean load - 1` over the last share of the steps: 0 is perfect balance.

        MaxVio of Wang et al. 2024 (arXiv:2408.15664, equation 4).
        """
        counted = torch.stack(self.loads[-max(1, int(last * len(self.loads))) :]).sum(0).double()
        return (counted.amax(1) / counted.mean(1) - 1).tolist()


class Trainer:
    """One model, its optimizer, and the training step that both the training and the speed comparison run."""

    def __init__(self, model: LanguageModel, config: TrainConfig, device: torch.device) -> None:
        self.model, self.config, self.device = model, config, device
        embedding = model.embedding.weight
        matrices = [p for p in model.parameters() if p.ndim > 1 and p is not embedding]
        vectors = [p for p in model.parameters() if p.ndim <= 1]
        groups = [
            {"params": matrices, "weight_decay": config.weight_decay, "scale": 1.0},
            {"params": vectors, "weight_decay": 0.0, "scale": 1.0},
            {"params": [embedding], "weight_decay": 0.0, "scale": EMBEDDING_LEARNING_RATE},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.95), fused=True)

    def loss(self, inputs: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
        """Cross entropy in nats; with reduction "none" per byte, [B, T]."""
        with torch.autocast(self.device.type, self.config.dtype, enabled=self.config.dtype != torch.float32):
            logits = self.model(inputs)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction=reduction)
        return loss if reduction == "mean" else loss.view(targets.shape)

    def step(self, inputs: Tensor, targets: Tensor, learning_rate: float) -> Tensor:
        """Forward, backward, clip, update; returns the loss in nats."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate * group["scale"]
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(inputs, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return loss.detach()

    def balance(self, rate: float) -> Tensor:
        """Moves every layer's selection bias against the load of this step; returns that load [layers, experts]."""
        layers = self.model.moe_layers()
        counts = torch.stack([layer.expert_counts for layer in layers if layer.expert_counts is not None]).cpu()
        for layer in layers:
            layer.update_expert_bias(rate)
        return counts

    @torch.no_grad()
    def bits_per_byte(self, text: Tensor, max_windows: int | None = None) -> float:
        """Mean bits for each byte of `text` (uint8 `[n]`) but the first, each scored once.

        Windows of `context` bytes overlap by half, so each byte has at least context / 2 bytes before it (as far
        as the text goes back). `max_windows` takes a sample, evenly spread over the text.
        """
        context = self.model.config.context
        stride = max(1, context // 2)
        num_targets = len(text) - 1
        starts = list(range(0, num_targets - context + 1, stride))
        if starts[-1] != num_targets - context:
            starts.append(num_targets - context)
        if max_windows is not None:
            starts = starts[:: -(-len(starts) // max_windows)]
        total, scored, count = 0.0, 0, 0
        self.model.eval()
        for at in range(0, len(starts), 16):
            chunk = starts[at : at + 16]
            windows = torch.stack([text[start : start + context + 1] for start in chunk]).long().to(self.device)
            losses = self.loss(windows[:, :-1], windows[:, 1:], reduction="none").double().cpu()
            for start, row in zip(chunk, losses, strict=True):
                first = max(scored - start, context - stride if start else 0)
                total += float(row[first:].sum())
                count += context - first
                scored = start + context
        self.model.train()
        return total / count / math.log(2)


def learning_rate(config: TrainConfig, step: int, progress: float) -> float:
    """Linear warm-up over the first steps, then a cosine over `progress` in [0, 1]."""
    warmup = WARMUP_STEPS if config.steps is None else max(1, min(WARMUP_STEPS, config.steps // 10))
    cosine = 0.5 + 0.5 * math.cos(math.pi * min(progress, 1.0))
    share = FINAL_LEARNING_RATE + (1 - FINAL_LEARNING_RATE) * cosine
    return config.learning_rate * share * min(1.0, (step + 1) / warmup)


def window_length(context: int, progress: float) -> int:
    """Short windows first, doubling to the full context in the last quarter (Li et al. 2022, arXiv:2108.06084).

    The first things to learn need no long context, and many places of the text in one batch teach them sooner.
    """
    doublings = int(-math.log2(SHORTEST_WINDOW))
    halvings = max(0, doublings - int(progress * (doublings + 1)))
    return max(min(16, context), context >> halvings)


def train(
    trainer: Trainer,
    sampler: BatchSampler,
    val: Tensor,
    budget_seconds: float,
    on_step: Callable[[History, float], None],
) -> History:
    """Trains for `config.steps` steps, or until `budget_seconds` have passed; calls `on_step(history, progress)`.

    With a number of steps nothing depends on the clock. With a time budget the schedule follows the clock, so that
    it ends with a small learning rate however fast the machine is.
    """
    config, history, started = trainer.config, History(), time.perf_counter()
    next_val = 0.0
    progress = 0.0
    while progress < 1.0:
        step = history.steps
        length = window_length(trainer.model.config.context, progress)
        inputs, targets = sampler(config.batch * trainer.model.config.context // length, length)
        loss = trainer.step(inputs, targets, learning_rate(config, step, progress))
        history.tokens += inputs.numel()
        history.windows.append(length)
        rate = config.bias_rate if progress < BIAS_RATE_END else 0.0
        history.loads.append(trainer.balance(rate))
        history.train_bits.append(float(loss) / math.log(2))
        elapsed = time.perf_counter() - started
        history.seconds.append(elapsed)
        progress = (step + 1) / config.steps if config.steps is not None else elapsed / budget_seconds
        if progress >= next_val:
            history.val_steps.append(step + 1)
            history.val_bits.append(trainer.bits_per_byte(val, max_windows=32))
            next_val = 0.1 * (math.floor(progress * 10) + 1)
        on_step(history, progress)
    return history
