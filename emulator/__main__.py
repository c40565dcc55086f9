"""`python -m emulator`: profiles a kernel, lists the chips, or measures the emulator itself."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

import emulator
from emulator.report import chips_table, print_launch

_ARRAY = re.compile(r"(?P<type>[a-z]+\d+)\[(?P<count>\d+)\](=(?P<fill>random|zeros|ones|range|empty))?")
_TYPES = {
    "f16": np.float16,
    "f32": np.float32,
    "f64": np.float64,
    **{f"i{bits}": np.dtype(f"int{bits}").type for bits in (8, 16, 32, 64)},
    **{f"s{bits}": np.dtype(f"int{bits}").type for bits in (8, 16, 32, 64)},
    **{f"u{bits}": np.dtype(f"uint{bits}").type for bits in (8, 16, 32, 64)},
}


def _type(name: str) -> Any:
    if name not in _TYPES:
        raise argparse.ArgumentTypeError(f"type {name!r} is none of {', '.join(_TYPES)}")
    return _TYPES[name]


def argument(text: str, gpu: emulator.Gpu, rng: np.random.Generator) -> Any:
    """`f32[1024]`, `i32[64]=range`, `i32:7`, `null`."""
    if text == "null":
        return None
    if match := _ARRAY.fullmatch(text):
        dtype, count, fill = _type(match["type"]), int(match["count"]), match["fill"] or "random"
        if fill == "empty":
            return gpu.empty(count, dtype)
        if fill == "range":
            return gpu.array(np.arange(count).astype(dtype))
        if fill in ("zeros", "ones"):
            return gpu.array(np.full(count, fill == "ones", dtype))
        if np.issubdtype(dtype, np.floating):
            return gpu.array(rng.standard_normal(count).astype(dtype))
        return gpu.array(rng.integers(0, 128, count).astype(dtype))
    name, colon, value = text.partition(":")
    if not colon:
        raise argparse.ArgumentTypeError(f"{text!r}: want an array such as f32[1024], a number such as i32:7, or null")
    dtype = _type(name)
    return dtype(float(value)) if np.issubdtype(dtype, np.floating) else dtype(int(value, 0))


def _triple(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def profile(options: argparse.Namespace) -> int:
    gpu = emulator.Gpu(options.chip, seed=options.seed, checks=not options.no_checks)
    source = options.source
    if source.endswith(".cu"):
        source = emulator.compile_cuda(source, f"sm_{gpu.chip.major}{gpu.chip.minor}{'a' * gpu.chip.arch_specific}")
    module = gpu.load(source)
    if options.kernel is None:
        if len(module.kernels) != 1:
            print(f"--kernel wants one of: {', '.join(module.kernels)}", file=sys.stderr)
            return 2
        options.kernel = module.kernels[0]
    rng = np.random.default_rng(options.seed)
    try:
        arguments = [argument(text, gpu, rng) for text in options.arg]
        launch = module[options.kernel](
            options.grid, options.block, *arguments, shared_bytes=options.shared, cluster=options.cluster
        )
    except emulator.Fault as fault:
        print(fault, file=sys.stderr)
        return 1
    except (argparse.ArgumentTypeError, KeyError, TypeError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    if options.json:
        print(launch.to_json())
    else:
        print_launch(launch, options.lines)
    return 0


def chips(_: argparse.Namespace) -> int:
    Console().print(chips_table())
    return 0


def benchmark(options: argparse.Namespace) -> int:
    from emulator.benchmark import run

    run(options.repeats, options.output)
    return 0


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m emulator", description="A virtual GPU for PTX.")
    commands = top.add_subparsers(required=True)
    p = commands.add_parser("profile", help="run a kernel and print its counters")
    p.set_defaults(run=profile)
    p.add_argument("source", help="a .ptx or .cu file, or a binary that carries PTX")
    p.add_argument("--kernel", help="name, or a part that only one kernel has")
    p.add_argument("--grid", type=_triple, default=(1,), metavar="X[,Y[,Z]]")
    p.add_argument("--block", type=_triple, default=(32,), metavar="X[,Y[,Z]]")
    p.add_argument("--cluster", type=_triple, metavar="X[,Y[,Z]]")
    p.add_argument("--shared", type=int, default=0, metavar="BYTES", help="dynamic shared memory")
    p.add_argument(
        "--arg",
        action="append",
        default=[],
        help="f32[1024] (random), f32[1024]=zeros|ones|range|empty, i32:7, f32:0.5, null; once per parameter",
    )
    p.add_argument("--chip", default="H100")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--lines", type=int, default=20, help="source lines to list; 0 for none")
    p.add_argument("--no-checks", action="store_true", help="skip the memory and race checks")
    p.add_argument("--json", action="store_true", help="print everything as JSON")
    commands.add_parser("chips", help="list the chips").set_defaults(run=chips)
    p = commands.add_parser("benchmark", help="how fast the emulator is on this machine")
    p.set_defaults(run=benchmark)
    p.add_argument("--repeats", type=int, default=5)
    p.add_argument("--output", type=Path, metavar="FILE", help="write JSON here")
    return top


def main() -> int:
    options = parser().parse_args()
    return options.run(options)


if __name__ == "__main__":
    sys.exit(main())
