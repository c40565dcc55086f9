"""What keeps experts busy: trains one small language model five times, from a router that has collapsed.

    python examples/balance_study.py                     # text that comes with Python, about four minutes on two cores
    python examples/balance_study.py --steps 60          # a quick look

Every run starts from the same weights and sees the same bytes. In each MoE layer the router begins with a large bias
for a few experts, so that nearly all bytes go there: a collapse, as it also comes by itself when the few experts that
are trained are the only ones worth choosing. Then one method at a time has to undo it:

    none           top-k of the softmax and nothing else
    z-loss         router z-loss (ST-MoE, arXiv:2202.08906): keeps logits small, and is not about balance
    switch         auxiliary loss of the Switch Transformer (arXiv:2101.03961)
    bias           aux-loss-free: a selection bias moved against the load (arXiv:2408.15664)
    expert-choice  experts choose their tokens (arXiv:2202.09368): balanced by construction, but an expert sees the
                   whole window when it chooses, so its loss looks into the future and is no fair comparison

`--output` gets balance.png (loss and MaxVio over the steps, and the load of every expert at the end) and balance.json.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

# As in train_lm.py: threads that spin lose much where the cores are shared.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

if TYPE_CHECKING:
    import torch
    from lm.data import Corpus
    from lm.model import LanguageModel, ModelConfig

    from moe_ext.nn import MoE

METHODS = ("none", "z-loss", "switch", "bias", "expert-choice")


@dataclass
class Run:
    """What one method did, step by step."""

    bits: list[float] = field(default_factory=list)
    """Loss on the training text in bits per byte."""
    max_violation: list[float] = field(default_factory=list)
    """Mean over the layers of MaxVio = max load / mean load - 1 (arXiv:2408.15664, equation 4)."""
    load: list[list[int]] = field(default_factory=list)
    """[layers][experts]: slots over the last tenth of the steps."""
    val_bits: float = float("nan")
    seconds: float = 0.0


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", nargs="+", type=Path, metavar="FILE", help="train on these files")
    parser.add_argument("--output", type=Path, default=Path("balance_output"), help="folder for results (%(default)s)")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS, metavar="METHOD", help="default: all")
    parser.add_argument("--steps", type=int, default=400, help="of each run (%(default)s)")
    parser.add_argument("--batch", type=int, default=8, help="windows in a step (%(default)s)")
    parser.add_argument("--context", type=int, default=128, help="bytes in a window (%(default)s)")
    parser.add_argument("--hidden", type=int, default=96, help="width of the model (%(default)s)")
    parser.add_argument("--layers", type=int, default=3, help="the first is dense (%(default)s)")
    parser.add_argument("--experts", type=int, default=16, help="in a layer (%(default)s)")
    parser.add_argument("--top-k", type=int, default=2, help="experts for a byte (%(default)s)")
    parser.add_argument("--collapse", type=float, default=4.0, help="bias of the favoured experts (%(default)s)")
    parser.add_argument("--lr", type=float, default=3e-3, help="peak learning rate (%(default)s)")
    parser.add_argument("--balance-coef", type=float, default=0.01, help="of the Switch loss (%(default)s)")
    parser.add_argument("--z-coef", type=float, default=0.001, help="of the z-loss (%(default)s)")
    parser.add_argument("--bias-rate", type=float, default=0.01, help="step of the selection bias (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    for name in ("steps", "batch", "context"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(args, name)}")
    return args


def layer_of(method: str, args: argparse.Namespace) -> Callable[[ModelConfig], MoE]:
    """How a method builds its MoE layers: they differ in nothing but the routing."""
    import torch

    from moe_ext.nn import MoE
    from moe_ext.routing import ExpertChoice, LinearLogits, Router

    def build(config: ModelConfig) -> MoE:
        sizes = (config.hidden, config.intermediate, config.experts, config.top_k)
        if method == "expert-choice":
            logits = LinearLogits(config.hidden, config.experts, bias=True)
            layer = MoE(*sizes, router=Router(logits, ExpertChoice(config.experts, capacity_factor=config.top_k)))
        else:
            layer = MoE(
                *sizes,
                router_bias=True,
                load_balancing_coef=args.balance_coef if method == "switch" else 0.0,
                z_loss_coef=args.z_coef if method == "z-loss" else 0.0,
                aux_loss_free=method == "bias",
            )
            logits = layer.router
        with torch.no_grad():
            assert logits.bias is not None
            logits.bias[: config.top_k] = args.collapse
        return layer

    return build


def train(method: str, args: argparse.Namespace, corpus: Corpus, on_step: Callable[[Run], None]) -> Run:
    import torch
    from lm.data import BatchSampler
    from lm.model import LanguageModel, ModelConfig
    from lm.train import TrainConfig, Trainer, learning_rate

    from moe_ext.losses import expert_counts
    from moe_ext.nn import update_expert_biases

    torch.manual_seed(args.seed)
    config = ModelConfig(
        hidden=args.hidden, layers=args.layers, experts=args.experts, top_k=args.top_k, context=args.context
    )
    model: LanguageModel = LanguageModel(config, layer_of(method, args))
    loads: list[torch.Tensor] = []
    for layer in model.moe_layers():
        layer.experts.register_forward_hook(
            lambda _, inputs, output: loads.append(expert_counts(inputs[2], args.experts)[0])
        )
    settings = TrainConfig(batch=args.batch, learning_rate=args.lr, steps=args.steps, seed=args.seed)
    trainer = Trainer(model, settings, torch.device("cpu"))
    sampler = BatchSampler(corpus.train, args.seed, torch.device("cpu"))
    run = Run()
    late = torch.zeros(len(model.moe_layers()), args.experts, dtype=torch.int64)
    started = time.perf_counter()
    for step in range(args.steps):
        loads.clear()
        inputs, targets = sampler(args.batch, args.context)
        loss = trainer.step(inputs, targets, learning_rate(settings, step, step / args.steps))
        if method == "bias":
            update_expert_biases(model, args.bias_rate)
        load = torch.stack(loads)
        run.bits.append(loss.item() / 0.6931471805599453)
        run.max_violation.append((load.amax(1) / load.double().mean(1) - 1).mean().item())
        if step >= args.steps - max(1, args.steps // 10):
            late += load
        on_step(run)
    run.seconds = time.perf_counter() - started
    run.load = late.tolist()
    run.val_bits = trainer.bits_per_byte(corpus.val, max_windows=64)
    return run


def plot(runs: dict[str, Run], path: Path) -> None:
    """Loss and MaxVio over the steps; the load of each expert at the end."""
    import torch
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 8), layout="constrained", dpi=150)
    top, bottom = figure.subfigures(2, 1, height_ratios=(1.6, 1))
    loss, violation = top.subplots(1, 2)
    colors = dict(zip(METHODS, ("#1f2933", "#9aa5b1", "#dd6b20", "#2b6cb0", "#2f855a"), strict=True))
    for method, run in runs.items():
        style: dict[str, Any] = {"color": colors[method], "linestyle": "--" if method == "expert-choice" else "-"}
        width = max(1, len(run.bits) // 40)
        for axes, values in ((loss, run.bits), (violation, run.max_violation)):
            smooth = torch.tensor(values).unfold(0, width, 1).mean(1)
            axes.plot(range(width, len(values) + 1), smooth.numpy(), label=method, **style)
    loss.set(xlabel="training step", ylabel="bits per byte", title="Loss (expert-choice sees the future)")
    violation.set(xlabel="training step", ylabel="MaxVio", title="Load of the busiest expert, above an even share")
    violation.set_ylim(bottom=0)
    violation.legend(frameon=False, loc="center right")
    panels = bottom.subplots(1, len(runs), sharey=True, squeeze=False)[0]
    for axes, (method, run) in zip(panels, runs.items(), strict=True):
        load = torch.tensor(run.load, dtype=torch.float64).sum(0)
        axes.bar(range(len(load)), (load / load.mean()).numpy(), color=colors[method])
        axes.axhline(1, color="#9aa5b1", linewidth=1, linestyle="--")
        axes.set(title=method, xlabel="expert")
    panels[0].set_ylabel("load at the end / even share")
    figure.savefig(path)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    from lm.data import TextError, check_length, files_corpus, python_topics_corpus
    from tqdm import tqdm

    try:
        corpus = files_corpus(args.text) if args.text else python_topics_corpus()
        check_length(corpus, args.context)
        runs: dict[str, Run] = {}
        for method in args.methods:
            with tqdm(total=args.steps, desc=f"{method:<14}", mininterval=0.2 if sys.stderr.isatty() else 10) as bar:

                def on_step(run: Run, bar: tqdm = bar) -> None:
                    bar.set_postfix_str(f"{run.bits[-1]:.2f} bits/byte, MaxVio {run.max_violation[-1]:.2f}", False)
                    bar.update()

                runs[method] = train(method, args, corpus, on_step)
    except (TextError, ValueError) as error:
        print(f"balance_study.py: error: {error}", file=sys.stderr)
        return 2
    args.output.mkdir(parents=True, exist_ok=True)
    plot(runs, args.output / "balance.png")
    settings = {name: value for name, value in vars(args).items() if name not in ("text", "output")}
    result = {"settings": settings, "text": corpus.source, "runs": {name: vars(run) for name, run in runs.items()}}
    (args.output / "balance.json").write_text(json.dumps(result, indent=1) + "\n")
    print(
        f"{'method':<15}{'train bits':>11}{'held-out bits':>15}{'MaxVio at first':>17}{'at the end':>12}{'seconds':>9}"
    )
    for method, run in runs.items():
        last = max(1, args.steps // 10)
        bits, violation = sum(run.bits[-last:]) / last, sum(run.max_violation[-last:]) / last
        print(
            f"{method:<15}{bits:>11.3f}{run.val_bits:>15.3f}{run.max_violation[0]:>17.2f}{violation:>12.2f}"
            f"{run.seconds:>9.0f}"
        )
    print(f"plot and numbers: {args.output}/")
    return 0


if __name__ == "__main__":
    sys.exit(main())
