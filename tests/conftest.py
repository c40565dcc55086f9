"""What every test relies on: fixed seeds, one thread count, no network, and each backend in turn.

A test that takes the fixture ``backend`` runs on each CPU instruction set that the build has and this machine can
execute, on virtual GPUs, and on CUDA; ``tests.support.backends`` says which tests run on which of them. One that takes
``cpu_isa`` runs on each instruction set only. What this machine cannot run is named in the header and again before
pytest's closing line.
"""

from __future__ import annotations

import os

# Before torch loads its thread pool: threads that wait by spinning starve the others on a busy machine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
# torch keeps compiled graphs from run to run, and their key knows an op's name, not the shapes that its fake kernel
# gives: after a change of an op, a graph of the old one would be run.
os.environ["TORCHINDUCTOR_FX_GRAPH_CACHE"] = "0"
os.environ["TORCHINDUCTOR_AUTOGRAD_CACHE"] = "0"

import random
from collections.abc import Iterator

import numpy
import pytest
import torch
from hypothesis import HealthCheck, settings

from tests.support import backends
from tests.support.backends import Backend

settings.register_profile(
    "moe_ext",
    deadline=None,
    derandomize=True,
    print_blob=True,
    # `backend` and `cpu_isa` hold for all examples of a test, as they should.
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
settings.load_profile("moe_ext")

torch.set_num_threads(min(2, torch.get_num_threads()))


def _backend_lines() -> list[str]:
    try:
        available, missing = backends.cpu_backends()
    except ImportError as error:
        return [f"moe_ext is not built ({error}): run `make test`, or `pip install --no-build-isolation -e .` first"]
    lines = [f"left out: {name}, which this machine cannot execute" for name in missing]
    reasons = {name: backends.why_not(name) for name in (*backends.VIRTUAL, backends.CUDA)}
    available += [name for name, reason in reasons.items() if reason is None]
    by_reason: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        if reason is not None:
            by_reason.setdefault(reason, []).append(name)
    lines += [f"left out: {', '.join(names)}: {reason}" for reason, names in by_reason.items()]
    return [f"backends tested: {', '.join(available)}", *lines]


def pytest_report_header() -> list[str]:
    return [f"torch {torch.__version__}, {torch.get_num_threads()} threads", *_backend_lines()]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for line in _backend_lines():
        terminalreporter.write_line(line)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--every-isa", action="store_true", help="also run tests of kernels that another ISA shares")
    parser.addoption("--every-backend", action="store_true", help="run every op test on every ISA and virtual GPU")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "cpu_isa" in metafunc.fixturenames:
        isas = [name.removeprefix("cpu:") for name in backends.cpu_backends()[0]]
        metafunc.parametrize("cpu_isa", isas, indirect=True)
    if "backend" in metafunc.fixturenames:
        marks = {backends.CUDA: pytest.mark.cuda, **dict.fromkeys(backends.VIRTUAL, pytest.mark.virtual)}
        names = [pytest.param(name, marks=marks.get(name, ())) for name in backends.all_backends()]
        metafunc.parametrize("backend", names, indirect=True)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--every-backend"):
        return
    every_isa = config.getoption("--every-isa")
    left_out = {item for item in items if backends.is_left_out(item, every_isa)}
    config.hook.pytest_deselected(items=[item for item in items if item in left_out])
    items[:] = [item for item in items if item not in left_out]


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("cuda") and (reason := backends.why_not(backends.CUDA)):
        pytest.skip(reason)
    if item.get_closest_marker("virtual") and (reason := backends.why_not(backends.VIRTUAL[0])):
        pytest.skip(reason)


@pytest.fixture(autouse=True)
def _fixed_seeds() -> None:
    random.seed(0)
    numpy.random.seed(0)  # noqa: NPY002 - libraries under test may use the global generator
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _restored_threads() -> Iterator[None]:
    """A test may call torch.set_num_threads; the next one starts as this one did."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=[1, 2], ids=lambda count: f"threads{count}")
def torch_threads(request: pytest.FixtureRequest) -> int:
    """Runs the test with one and with two threads."""
    count: int = request.param
    torch.set_num_threads(count)
    return count


@pytest.fixture
def cpu_isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Pins the CPU kernels to one instruction set for the length of the test."""
    isa: str = request.param
    with backends.pinned(isa):
        yield isa


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """Where the ops run for the length of the test."""
    name: str = request.param
    test = request.node.nodeid.replace(name, "")
    if name in backends.VIRTUAL:
        request.node.add_report_section("setup", "virtual GPU", str(backends.behaviour(test)))
    with backends.entered(name, test) as entered:
        yield entered
