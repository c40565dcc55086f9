"""All parts, by name, and who computes each."""

from __future__ import annotations

from typing import Final

from bench.parts import assignments, contenders, places, work
from bench.parts.contenders import Entry
from bench.parts.work import Part

PARTS: Final[dict[str, Part]] = {part.name: part for part in (*work.PARTS, *assignments.PARTS, *places.PARTS)}
ENTRIES: Final[dict[str, list[Entry]]] = {**contenders.ENTRIES, **assignments.ENTRIES, **places.ENTRIES}
