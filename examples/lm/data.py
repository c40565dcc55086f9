"""Text as bytes: where it comes from, how it is split, how batches are drawn.

Everything is bytes, so any file in any encoding works and the vocabulary has 256 entries.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

VOCAB_SIZE = 256
VAL_FRACTION = 0.1
_MIN_PARAGRAPH = 40  # shorter paragraphs ("See also:") repeat naturally and give nothing away


class TextError(ValueError):
    """The text cannot be used; the message says which file and why."""


@dataclass(frozen=True)
class Corpus:
    """Two disjoint byte sequences, uint8 `[num_bytes]`, and a line that says where they come from."""

    train: Tensor
    val: Tensor
    source: str

    def sha256(self) -> str:
        """Fingerprint of both splits: results are only comparable where it agrees."""
        digest = hashlib.sha256(self.train.numpy().tobytes())
        digest.update(b"\0split\0" + self.val.numpy().tobytes())
        return digest.hexdigest()


def _to_tensor(text: bytes) -> Tensor:
    return torch.frombuffer(bytearray(text), dtype=torch.uint8)


def drop_repeats(topics: Mapping[str, str]) -> dict[str, str]:
    """Removes paragraphs that also stand in a longer topic, and topics of which less than half is left.

    Many topics are chapters of others ("if" is a section of "compound"); left in, a held-out topic could be in
    the training text word for word.
    """
    seen: set[str] = set()
    kept: dict[str, str] = {}
    for name in sorted(topics, key=lambda name: (-len(topics[name]), name)):
        paragraphs = []
        for paragraph in topics[name].split("\n\n"):
            words = " ".join(paragraph.split())
            if len(words) >= _MIN_PARAGRAPH:
                if words in seen:
                    continue
                seen.add(words)
            paragraphs.append(paragraph)
        text = "\n\n".join(paragraphs)
        if 2 * len(text) >= len(topics[name]):
            kept[name] = text
    return {name: kept[name] for name in sorted(kept)}


def split_topics(topics: Mapping[str, str], val_fraction: float = VAL_FRACTION) -> tuple[list[str], list[str]]:
    """Names of the training and of the held-out topics, by a hash of the name: no seed, no order of the dict.

    In the order of the hashes a topic is held out if it still fits into `val_fraction` of the bytes and is not
    itself more than a quarter of that, so that no single topic decides the result.
    """
    sizes = {name: len(text.encode()) for name, text in topics.items()}
    room = int(val_fraction * sum(sizes.values()))
    largest = room // 4
    held_out = set()
    for name in sorted(sizes, key=lambda name: hashlib.sha256(name.encode()).digest()):
        if sizes[name] <= min(room, largest):
            held_out.add(name)
            room -= sizes[name]
    return [name for name in sorted(sizes) if name not in held_out], sorted(held_out)


def python_topics_corpus() -> Corpus:
    """The help topics of the Python language reference that come with every Python (`pydoc_data.topics`)."""
    from pydoc_data.topics import topics

    unique = drop_repeats(topics)
    train, val = split_topics(unique)

    def join(names: Iterable[str]) -> Tensor:
        return _to_tensor("\n\n".join(unique[name] for name in names).encode())

    return Corpus(join(train), join(val), f"pydoc_data.topics, {len(train)} topics, {len(val)} held out")


def files_corpus(paths: Sequence[Path], val_fraction: float = VAL_FRACTION) -> Corpus:
    """The user's own files; the last `val_fraction` of each is held out."""
    train, val = [], []
    for path in paths:
        try:
            text = path.read_bytes()
        except OSError as error:
            raise TextError(f"cannot read text file {path}: {error.strerror or error}") from error
        if not text:
            raise TextError(f"text file {path} is empty")
        cut = len(text) - int(len(text) * val_fraction)
        train.append(text[:cut])
        val.append(text[cut:])
    names = ", ".join(path.name for path in paths)
    return Corpus(_to_tensor(b"\n\n".join(train)), _to_tensor(b"\n\n".join(val)), f"files {names}")


def check_length(corpus: Corpus, context: int) -> None:
    """Raises TextError unless both splits hold at least one window of `context` bytes and its successor."""
    for name, part in (("training", corpus.train), ("held-out", corpus.val)):
        if len(part) < context + 1:
            needed = context + 1 if name == "training" else int((context + 1) / VAL_FRACTION)
            raise TextError(
                f"the text is too short: its {name} part has {len(part)} bytes and needs at least {context + 1} "
                f"for --context {context} (give about {needed} bytes of text in all, or a smaller --context)"
            )


class BatchSampler:
    """Windows at random places of a text (uint8 `[n]`), from a random stream of its own."""

    def __init__(self, text: Tensor, seed: int, device: torch.device) -> None:
        self._text = text
        self._device = device
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, batch: int, length: int) -> tuple[Tensor, Tensor]:
        """(inputs, targets), both int64 `[batch, length]`: targets are the bytes that follow."""
        windows = self._text.unfold(0, length + 1, 1)
        starts = torch.randint(len(windows), (batch,), generator=self._generator)
        chosen = windows[starts].long().to(self._device)
        return chosen[:, :-1], chosen[:, 1:]
