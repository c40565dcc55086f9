"""Trains a small DeepSeek-style mixture-of-experts language model on your machine in about two minutes.

    python examples/train_lm.py                          # text that comes with Python
    python examples/train_lm.py --text a.txt b.txt       # your own, any encoding
    python examples/train_lm.py --load demo_output/model.safetensors --generate "The "

The model reads and writes bytes. Its MoE layers are `moe_ext.nn.MoE`; everything else is plain PyTorch and stands in
`examples/lm/`. At the end it is compared with byte n-gram models on held-out text, and its training speed with that
of the same model on Hugging Face's experts. Plots, summary.json and the weights go to `--output`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from lm.data import Corpus
    from lm.model import LanguageModel
    from lm.train import History

_STARTED = time.perf_counter()

# OpenMP threads that spin while they wait lose a factor of ten where the cores are shared with other programs; ones
# that sleep lose next to nothing where they are not. Read when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", nargs="+", type=Path, metavar="FILE", help="train on these files")
    parser.add_argument("--output", type=Path, default=Path("demo_output"), help="folder for results (%(default)s)")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=float, default=2.0, help="time for everything, roughly (%(default)s)")
    length.add_argument("--steps", type=int, help="train this many steps instead; repeatable bit for bit")

    model = parser.add_argument_group("model")
    model.add_argument("--hidden", type=int, default=128, help="width (%(default)s)")
    model.add_argument("--layers", type=int, default=4, help="the first is dense, the others are MoE (%(default)s)")
    model.add_argument("--heads", type=int, default=4, help="attention heads (%(default)s)")
    model.add_argument("--experts", type=int, default=32, help="routed experts in a layer (%(default)s)")
    model.add_argument("--top-k", type=int, default=4, help="routed experts for a byte (%(default)s)")
    model.add_argument("--intermediate", type=int, default=32, help="width of one expert (%(default)s)")
    model.add_argument("--context", type=int, default=256, help="bytes that the model sees (%(default)s)")

    training = parser.add_argument_group("training")
    training.add_argument("--batch", type=int, default=2, help="windows in a step (%(default)s)")
    training.add_argument("--lr", type=float, default=3e-3, help="peak learning rate (%(default)s)")
    training.add_argument("--seed", type=int, default=0, help="of weights, batches and sampling (%(default)s)")
    training.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 ... (%(default)s)")
    training.add_argument(
        "--dtype", choices=("auto", "float32", "bfloat16"), default="auto",
        help="of the matrix products; auto: bfloat16 where the hardware multiplies it",
    )  # fmt: skip
    training.add_argument("--threads", type=int, help="CPU threads (all cores)")

    text = parser.add_argument_group("generating")
    text.add_argument("--load", type=Path, metavar="MODEL", help="a model.safetensors; with --generate, no training")
    text.add_argument("--generate", metavar="PROMPT", help="what the sample continues")
    text.add_argument("--length", type=int, default=400, help="bytes to generate (%(default)s)")
    text.add_argument("--temperature", type=float, default=0.7, help="0 for the likeliest byte (%(default)s)")

    args = parser.parse_args(argv)
    if args.load is not None and args.generate is None:
        parser.error("--load needs --generate PROMPT")
    if args.generate is not None and not args.generate:
        parser.error("--generate needs a prompt of at least one character")
    for name, low in (("steps", 1), ("batch", 1), ("threads", 1), ("length", 1), ("temperature", 0)):
        value = getattr(args, name)
        if value is not None and value < low:
            parser.error(f"--{name} must be at least {low}, got {value}")
    for name in ("minutes", "lr"):
        if not getattr(args, name) > 0:
            parser.error(f"--{name} must be greater than 0, got {getattr(args, name)}")
    return args


def choose_device(name: str) -> torch.device:
    import torch

    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"unknown --device {name!r}") from error
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"--device must be cpu or cuda, got {name!r}")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: this PyTorch sees no CUDA device")
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    import torch

    if name != "auto":
        return getattr(torch, name)
    if device.type == "cuda":
        return torch.bfloat16
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return torch.bfloat16 if capabilities.get("amx_bf16") else torch.float32


def show(text: bytes) -> str:
    return text.decode("utf-8", errors="replace")


def train_model(
    args: argparse.Namespace, model: LanguageModel, corpus: Corpus, device: torch.device, dtype: torch.dtype
) -> tuple[Any, History]:
    """Trains with a progress bar; returns the trainer and the history."""
    from lm.data import BatchSampler
    from lm.train import TrainConfig, Trainer, train
    from tqdm import tqdm

    config = TrainConfig(batch=args.batch, learning_rate=args.lr, steps=args.steps, seed=args.seed, dtype=dtype)
    trainer = Trainer(model, config, device)
    sampler = BatchSampler(corpus.train, args.seed, device)
    # A fifth of the time is for what follows: evaluation, the comparison of speed, text, plots.
    budget = max(0.8 * 60 * args.minutes - (time.perf_counter() - _STARTED), 0.3 * 60 * args.minutes)
    bar = tqdm(
        total=100, unit="%", desc="training", mininterval=0.2 if sys.stderr.isatty() else 10,
        bar_format="{desc} {percentage:3.0f}% |{bar}| {elapsed}<{remaining} {postfix}",
    )  # fmt: skip

    def on_step(history: History, progress: float) -> None:
        recent = history.train_bits[-20:]
        seconds = history.seconds[-1] - (history.seconds[-21] if history.steps > 20 else 0.0)
        rate = min(20, history.steps) * args.batch * args.context / max(seconds, 1e-9)
        bar.set_postfix_str(
            f"step {history.steps}, loss {sum(recent) / len(recent):.3f}, held-out {history.val_bits[-1]:.3f} "
            f"bits/byte, {rate:,.0f} tokens/s",
            refresh=False,
        )
        bar.update(min(100 * progress, 100) - bar.n)

    with bar:
        return trainer, train(trainer, sampler, corpus.val, budget, on_step)


def reload_is_identical(model: LanguageModel, path: Path, corpus: Corpus, device: torch.device) -> bool:
    """Whether the model read back from `path` gives the very same logits."""
    import torch
    from lm.model import load_model

    tokens = corpus.val[: model.config.context].long()[None].to(device)
    reloaded = load_model(path, device).eval()
    model.eval()
    with torch.inference_mode():
        return torch.equal(model(tokens), reloaded(tokens))


def count_parameters(model: LanguageModel) -> dict[str, int]:
    """All parameters, and those that work on one byte."""
    total = sum(p.numel() for p in model.parameters())
    routed = sum(p.numel() for layer in model.moe_layers() for p in layer.experts.parameters())
    return {"total": total, "active": total - routed + routed * model.config.top_k // model.config.experts}


def run_training(args: argparse.Namespace) -> None:
    import torch
    from lm.baselines import NGram
    from lm.data import BatchSampler, check_length, files_corpus, python_topics_corpus
    from lm.generate import generate
    from lm.model import LanguageModel, ModelConfig, save_model
    from lm.plots import plot_load, plot_loss, plot_speed
    from lm.speed import compare, summarize

    config = ModelConfig(**{field.name: getattr(args, field.name) for field in fields(ModelConfig)})
    device = choose_device(args.device)
    dtype = choose_dtype(args.dtype, device)
    corpus = files_corpus(args.text) if args.text else python_topics_corpus()
    check_length(corpus, config.context)
    args.output.mkdir(parents=True, exist_ok=True)

    torch.manual_seed(args.seed)
    model = LanguageModel(config).to(device)
    parameters = count_parameters(model)
    dtype_name = str(dtype).removeprefix("torch.")
    print(f"text: {corpus.source}; {len(corpus.train):,} bytes to train, {len(corpus.val):,} held out")
    print(
        f"model: {parameters['total'] / 1e6:.1f}M parameters, {parameters['active'] / 1e6:.1f}M at work on each byte; "
        f"{config.layers - 1} MoE layers of {config.experts} experts, top {config.top_k}, and a shared one; "
        f"{dtype_name} on {device}"
    )
    ngrams = {order: NGram(corpus.train, order).bits_per_byte(corpus.val) for order in range(6)}

    trainer, history = train_model(args, model, corpus, device, dtype)
    val_bits = trainer.bits_per_byte(corpus.val)
    path = args.output / "model.safetensors"
    save_model(model, path)
    identical = reload_is_identical(model, path, corpus, device)
    if args.generate:
        prompt = os.fsencode(args.generate)
    else:
        prompt = corpus.val[:32].numpy().tobytes() if args.text else b"The "
    sample = generate(model, prompt, args.length, args.temperature, args.seed)

    inputs, targets = BatchSampler(corpus.train, args.seed, device)(args.batch, config.context)
    # Learning rate 0: full steps, and the weights stay as they are.
    rates = compare(
        model, lambda: trainer.step(inputs, targets, 0.0), inputs.numel(), seconds=0.08 * 60 * args.minutes
    )  # fmt: skip
    speed = summarize(rates)
    hugging_face = {name: rate["median"] for name, rate in speed.items() if name != "moe_ext"}
    fastest = max(hugging_face, key=lambda name: hugging_face[name], default=None)

    plot_loss(history, val_bits, ngrams, args.output / "loss.png")
    plot_load(history, args.output / "expert_load.png")
    plot_speed(speed, args.output / "speed.png")
    summary = {
        "val_bits_per_byte": val_bits,
        "order0_bits_per_byte": ngrams[0],
        "order2_bits_per_byte": ngrams[2],
        "ngram_bits_per_byte": ngrams,
        "tokens_per_second_moe_ext": speed["moe_ext"]["median"],
        "tokens_per_second_hf": hugging_face[fastest] if fastest else None,
        "hf_implementation": fastest,
        "speed": speed,
        "max_violation_per_layer": history.max_violation(),
        "reload_identical": identical,
        "steps": history.steps,
        "training_seconds": history.seconds[-1],
        "tokens": history.tokens,
        "parameters": parameters,
        "config": asdict(config),
        "training": {
            "batch": args.batch, "learning_rate": args.lr, "seed": args.seed, "dtype": dtype_name,
            "device": str(device), "threads": torch.get_num_threads(),
        },
        "text": {
            "source": corpus.source, "train_bytes": len(corpus.train), "val_bytes": len(corpus.val),
            "sha256": corpus.sha256(),
        },
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "history": {
            "train_bits": history.train_bits, "val_steps": history.val_steps, "val_bits": history.val_bits,
        },
        "sample": {"prompt": show(prompt), "text": show(sample)},
        "seconds": time.perf_counter() - _STARTED,
    }  # fmt: skip
    (args.output / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    report(summary, args.output)
    if not identical:
        raise ValueError(f"{path}: the reloaded model gives other logits than the trained one")


def report(summary: dict[str, Any], output: Path) -> None:
    """The result in a few lines."""
    print(f"\nsample, continuing {summary['sample']['prompt']!r}:\n")
    print("\n".join("    " + line for line in summary["sample"]["text"].splitlines()))
    print(f"\n{'held-out text':<28}bits per byte")
    for order, bits in summary["ngram_bits_per_byte"].items():
        print(f"  {f'byte n-gram, order {order}':<26}{bits:13.3f}")
    print(f"  {'this model':<26}{summary['val_bits_per_byte']:13.3f}")
    print(f"\n{'training speed':<28}tokens per second, median of {summary['speed']['moe_ext']['steps']} steps")
    for name, rate in summary["speed"].items():
        label = "moe_ext" if name == "moe_ext" else f"Hugging Face {name}"
        relation = "" if name == "moe_ext" else f"   moe_ext is {_ratio(summary, name):.2f} x as fast"
        print(f"  {label:<26}{rate['median']:13,.0f}{relation}")
    if summary["tokens_per_second_hf"] is None:
        print("  (pip install transformers to compare with the experts of Hugging Face)")
    violations = ", ".join(f"{value:.2f}" for value in summary["max_violation_per_layer"])
    print(f"\nload balance, MaxVio of each MoE layer (0 is even): {violations}")
    print(f"reloaded weights give identical logits: {'yes' if summary['reload_identical'] else 'NO'}")
    print(
        f"{summary['steps']} steps, {summary['tokens']:,} tokens in {summary['training_seconds']:.0f} s; "
        f"{summary['seconds']:.0f} s in all. Results: {output}/"
    )


def _ratio(summary: dict[str, Any], name: str) -> float:
    return summary["speed"]["moe_ext"]["median"] / summary["speed"][name]["median"]


def run_generation(args: argparse.Namespace) -> None:
    from lm.generate import generate
    from lm.model import load_model

    model = load_model(args.load, choose_device(args.device))
    prompt = os.fsencode(args.generate)
    sys.stdout.write(show(prompt + generate(model, prompt, args.length, args.temperature, args.seed)) + "\n")


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    # Imported late, so that --help and wrong options answer at once.
    import torch
    from lm.data import TextError
    from lm.model import ConfigError

    if args.threads is not None:
        torch.set_num_threads(args.threads)
    try:
        if args.load is not None:
            run_generation(args)
        else:
            run_training(args)
    except (TextError, ConfigError, ValueError) as error:
        print(f"train_lm.py: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
