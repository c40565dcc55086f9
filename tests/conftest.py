"""What every test relies on: fixed seeds, one thread count, no network, and each CPU instruction set in turn.

A test that takes the fixture ``cpu_isa`` runs once for each instruction set that the build has and this machine can
execute. Those the machine lacks are named in the header and again before pytest's closing line. Kernels that several
instruction sets share are tested on one of them, unless ``--every-isa`` is given.
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
from hypothesis import settings

settings.register_profile("moe_ext", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("moe_ext")

torch.set_num_threads(min(2, torch.get_num_threads()))


def _isas() -> tuple[list[str], list[str]]:
    """The instruction sets to test, and those that were compiled but that this machine cannot execute."""
    from moe_ext import _C

    available = list(_C.cpu_isas_available())
    return available, [isa for isa in _C.cpu_isas_compiled() if isa not in available]


def _isa_line() -> str:
    try:
        available, missing = _isas()
    except ImportError as error:
        return f"moe_ext is not built ({error}): run `make test`, or `pip install --no-build-isolation -e .` first"
    left_out = ", ".join(missing) or "none"
    return f"CPU instruction sets tested: {', '.join(available)}; left out because this machine lacks them: {left_out}"


def pytest_report_header() -> list[str]:
    return [f"torch {torch.__version__}, {torch.get_num_threads()} threads", _isa_line()]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.write_line(_isa_line())


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "cpu_isa" in metafunc.fixturenames:
        metafunc.parametrize("cpu_isa", _isas()[0], indirect=True)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--every-isa", action="store_true", help="also run tests of kernels that another ISA shares")


# One source, compiled with flags that differ only by instructions for products of bfloat16: everything else is the
# same code in all three, and is tested on the best that the machine has.
_SHARED_KERNELS = ("avx512", "avx512bf16", "amx")
_PRODUCTS = ("gemm", "experts", "determinism", "properties", "large")


def _is_shared(item: pytest.Item, best: str) -> bool:
    params = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
    isa = params.get("cpu_isa")
    if isa not in _SHARED_KERNELS or isa == best:
        return False
    if any(word in item.path.name for word in _PRODUCTS):
        return "dtype" in params and params["dtype"] is not torch.bfloat16
    return True


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--every-isa"):
        best = _isas()[0][-1]
        shared = [item for item in items if _is_shared(item, best)]
        config.hook.pytest_deselected(items=shared)
        left_out = set(shared)
        items[:] = [item for item in items if item not in left_out]
    if not torch.cuda.is_available():
        for item in items:
            if "cuda" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="no CUDA device: torch.cuda.is_available() is False"))


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
    """Pins the kernels to one instruction set for the length of the test."""
    from moe_ext import _C

    isa: str = request.param
    before = _C.cpu_isa()
    _C.set_cpu_isa(isa)
    yield isa
    _C.set_cpu_isa(before)
