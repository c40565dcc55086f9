"""What the commands that time with `time_interleaved` share, `parts` and `scaling`: the head of a result, its file, and
the options on the command line."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from bench.machine import counted_threads, describe_run
from bench.results import default_output, write_json
from bench.runner import DTYPES


@dataclass
class TimedRun:
    """One run. A result adds what it measured; in its file "kind" is KIND."""

    KIND: ClassVar[str]
    date: str
    command: str
    threads: int
    machine: dict[str, Any]
    versions: dict[str, Any]
    source: dict[str, Any]
    limits: dict[str, Any]

    @staticmethod
    def head(arguments: argparse.Namespace, argv: Sequence[str]) -> dict[str, Any]:
        """The fields of this class, before anything is measured. Sets the number of threads."""
        torch.set_num_threads(arguments.threads)
        return {**describe_run(argv), "threads": arguments.threads, "limits": {}}

    @property
    def title(self) -> str:
        """Machine, threads and day."""
        return f"{self.machine['cpu']}, {counted_threads(self.threads)}, {self.date[:10]}"

    def write(self, path: Path, content: dict[str, Any]) -> None:
        """Replace `path` in one step."""
        write_json(path, {"kind": self.KIND, **content})

    @staticmethod
    def read(path: Path) -> dict[str, Any]:
        """What `write` was given."""
        content: dict[str, Any] = json.loads(path.read_text())
        del content["kind"]
        return content


def add_arguments(parser: argparse.ArgumentParser, kind: str, *, dtypes: list[str], repeats: int, also: str) -> None:
    """--dtypes, --repeats, --threads, --quick and --output, with these defaults."""
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=dtypes)
    parser.add_argument("--repeats", type=int, default=repeats, help="rounds; short calls get more")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true", help="see the machinery run: measure the limits badly")
    parser.add_argument("--output", type=Path, help=f"default: bench/results/<date>-{kind}.json{also}")


def output_of(arguments: argparse.Namespace, kind: str) -> Path:
    """Where to write."""
    return arguments.output or default_output(kind)
