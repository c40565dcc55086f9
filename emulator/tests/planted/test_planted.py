"""The virtual GPU against a catalogue of planted bugs.

What is proved
--------------
Each kernel in the .cu files of this folder comes as twins, made from the same source by a template argument: one with
a single bug of a kind that CUDA programmers really make, one without.

* `test_bug_is_reported`: the twin with the bug stops with a fault of the right kind, at the right source line, under
  each of five schedules. A bug that strikes only under some schedules must be found under all of them: races are
  found from the order that the synchronisation gives, not from the order that happened. Nor does it matter whether
  asynchronous copies complete as late as they may, as early as they may, or last in first out.
* `test_sound_twin_passes`: the other twin gives the right results under twenty schedules with all checks on: no false
  alarm. The sound twins cover what is right and easily suspected: double buffers with one barrier per round, lanes
  that exchange through shared memory with __syncwarp, neighbouring bytes with different writers, locks that lanes of
  one warp take in turn, last-block reductions, look-back scans, rings of mbarriers, named barriers between producers
  and consumers, cp.async and TMA pipelines, wgmma groups kept in flight, multicast and remote arrivals in clusters.
  The same holds for each way of completing copies.
* `test_blocks_on_two_host_threads`: both twins of the kernels whose blocks talk to each other, on two host threads.

The marks
---------
`// BUG: kind` in a source marks a line where the fault may be reported, and its kind, as in emulator.Fault.kind.
A race is rightly reported at either of its two accesses, a deadlock at any of the waits, and some bugs show as one
of several kinds depending on the schedule; then several lines are marked, or several kinds as in `kind | kind`.
`// BUG(kName): kind` belongs to that variant of a kernel with several bugs. `wrong_result` marks the few bugs that
break no rule of the machine: nothing but the result shows them. One of those, volatile_warp_reduction, is found by
chance: lanes must be let run apart, which the emulator does at random; sixteen blocks make a miss unlikely.

What is not proved: that every bug is found. The catalogue grows with each one that was missed.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

import emulator
from emulator.tests.planted import cases_block, cases_hopper, cases_memory  # noqa: F401  (they declare the cases)
from emulator.tests.planted.harness import CASES, Case, compile_all

pytestmark = pytest.mark.skipif(emulator.nvcc() is None, reason="needs nvcc")

every_case = pytest.mark.parametrize("case", CASES, ids=str)
# Kernels with several bugs have one sound twin.
sound_twins = pytest.mark.parametrize("case", {(c.source, c.kernel): c for c in CASES}.values(), ids=str)


@pytest.fixture(scope="module", autouse=True)
def _compiled() -> None:
    compile_all()


def _expect_bug(case: Case, seed: int, **options: Any) -> None:
    with pytest.raises((emulator.Fault, AssertionError) if case.wrong_result else emulator.Fault) as caught:
        case.launch(bug=True, seed=seed, **options)
    if isinstance(caught.value, emulator.Fault):
        assert case.matches(caught.value), f"seed {seed}, want one of {case.marks}, got:\n{caught.value}"


@every_case
def test_bug_is_reported(case: Case) -> None:
    for seed in range(5):
        _expect_bug(case, seed)


@every_case
@pytest.mark.parametrize("completion", ["latest", "lifo", "eager"])
def test_bug_is_reported_whenever_copies_complete(case: Case, completion: str) -> None:
    _expect_bug(case, 0, completion=completion)


@sound_twins
def test_sound_twin_passes(case: Case) -> None:
    for seed in range(20):
        case.launch(bug=False, seed=seed)


@sound_twins
@pytest.mark.parametrize("completion", ["latest", "lifo", "eager"])
def test_sound_twin_passes_whenever_copies_complete(case: Case, completion: str) -> None:
    for seed in range(3):
        case.launch(bug=False, seed=seed, completion=completion)


@pytest.mark.parametrize("case", [case for case in CASES if case.source == "global_races.cu"], ids=str)
def test_blocks_on_two_host_threads(case: Case) -> None:
    case.launch(bug=False, seed=0, host_threads=2)
    if "deadlock" not in set().union(*case.marks.values()):  # hangs are found, late
        _expect_bug(case, 0, host_threads=2)


def test_catalogue() -> None:
    names = Counter(case.name for case in CASES)
    assert max(names.values()) == 1
    assert len(CASES) >= 48
    assert sum(case.wrong_result for case in CASES) <= 4
