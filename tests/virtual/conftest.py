"""Tests of what only the virtual GPU can show: launches, host calls, graphs, faults."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.support import backends, virtual

if TYPE_CHECKING:
    import emulator


@pytest.fixture(params=[pytest.param(chip, marks=pytest.mark.virtual) for chip in backends.CHIPS])
def gpu(request: pytest.FixtureRequest) -> Iterator[emulator.Gpu]:
    """The virtual GPU that the ops run on for the length of the test: each chip in turn."""
    with virtual.ops_on(request.param, counters=True, **backends.behaviour(request.node.nodeid)) as entered:
        yield entered
