"""Where the ops can run, and which tests run where.

A test that takes the fixture ``backend`` runs on

* ``cpu:<isa>``: each instruction set that was compiled and that this machine can execute,
* ``virtual:<chip>``: the CUDA kernels on the virtual GPU (tests.support.virtual),
* ``cuda``: the CUDA kernels on a CUDA device.

It makes its tensors on the CPU and gives them to ``backend.put`` before an op sees them. Truths are computed on the
CPU. What follows ``Backend`` says which tests are left out where; ``--every-backend`` runs them all.
"""

from __future__ import annotations

import contextlib
import functools
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import pytest
import torch
from torch import Tensor

from tests.support import virtual

if TYPE_CHECKING:
    import emulator

CHIPS = ("sm_80", "sm_89", "sm_90a")
VIRTUAL = tuple(f"virtual:{chip}" for chip in CHIPS)
CUDA = "cuda"

# Each test on a virtual GPU gets one of these, by its name.
SEEDS = (0, 1, 2)
COMPLETIONS = ("random", "latest")

Value = TypeVar("Value")


@dataclass
class Backend:
    name: str
    gpu: emulator.Gpu | None = None  # the virtual one, while a test runs on it

    @property
    def is_cpu(self) -> bool:
        """The C++ CPU kernels. Only they take a number of threads, and only they look at the contents of index
        tensors: elsewhere a wrong offset is not followed, but not reported either."""
        return self.name.startswith("cpu:")

    @property
    def is_virtual(self) -> bool:
        return self.name.startswith("virtual:")

    @property
    def device(self) -> str:
        """Of the tensors."""
        return "cuda" if self.name == CUDA else "cpu"

    @property
    def dtypes(self) -> tuple[torch.dtype, ...]:
        """Of the data."""
        return (torch.float32, torch.bfloat16, torch.float16, torch.float64)

    def strides_keep_bits(self, dtype: torch.dtype) -> bool:
        """Whether products have the same bits with other strides, or another alignment. On a GPU these may call for
        another kernel, except where there is but one. Dot products by rows (the gradient of routing weights) have the
        same bits on the CPU only: on a GPU several values are loaded at once where possible."""
        return self.is_cpu or dtype.itemsize > 2

    def put(self, value: Value) -> Value:
        """The same values where the kernels can read them: a tensor, or tensors in dicts, tuples and lists.

        A copy has the strides of what it was made of, and the same values in the gaps.
        """
        result: Any = value
        if isinstance(value, Tensor):
            if not self.is_cpu:
                result = _copy(value, self.device)
        elif isinstance(value, Mapping):
            result = {key: self.put(item) for key, item in value.items()}
        elif isinstance(value, tuple) and hasattr(value, "_fields"):
            result = type(value)(*map(self.put, value))
        elif isinstance(value, tuple | list):
            result = type(value)(map(self.put, value))
        return result

    def variations(self) -> Iterator[str]:
        """Sets what must not change a bit, one thing after the other, and says which: the number of threads, or the
        order of warps and blocks on a virtual GPU. A CUDA device just does it again."""
        if self.is_cpu:
            for num_threads in (1, 1, 2, 2, 5, 5):  # the second run finds other memory
                torch.set_num_threads(num_threads)
                yield f"{num_threads} threads"
        elif self.gpu is not None:
            for self.gpu.seed, self.gpu.completion in ((11, "latest"), (12, "random")):
                yield f"seed {self.gpu.seed}, completion {self.gpu.completion}"
        else:
            yield from ("the second time", "the third time", "the fourth time")

    def takes(self, seed: int) -> bool:
        """Whether to run an example that was drawn with this seed: all, but a quarter where each takes long."""
        return not self.is_virtual or seed % 4 == 0

    def __str__(self) -> str:
        return self.name


def _copy(tensor: Tensor, device: str) -> Tensor:
    """A copy of the whole storage, looked at in the same way."""
    elements = tensor.untyped_storage().nbytes() // tensor.element_size()
    storage = tensor.detach().as_strided((elements,), (1,), 0).to(device, copy=True)
    view = storage.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
    return view.requires_grad_(tensor.requires_grad)


def cpu_backends() -> tuple[list[str], list[str]]:
    """Those to test, and those that were compiled but that this machine cannot execute."""
    from moe_ext import _C

    available = list(_C.cpu_isas_available())
    missing = [isa for isa in _C.cpu_isas_compiled() if isa not in available]
    return [f"cpu:{isa}" for isa in available], [f"cpu:{isa}" for isa in missing]


def all_backends() -> list[str]:
    return [*cpu_backends()[0], *VIRTUAL, CUDA]


@functools.cache
def why_not(name: str) -> str | None:
    """What keeps this backend from being tested here; None if nothing does."""
    if name == CUDA:
        return None if torch.cuda.is_available() else "no CUDA device: torch.cuda.is_available() is False"
    return virtual.why_not() if name in VIRTUAL else None


@contextlib.contextmanager
def entered(name: str, test: str = "") -> Iterator[Backend]:
    """Runs the ops on this backend. ``test`` chooses how a virtual GPU behaves."""
    if name.startswith("cpu:"):
        with pinned(name.removeprefix("cpu:")):
            yield Backend(name)
    elif name in VIRTUAL:
        with virtual.ops_on(name.removeprefix("virtual:"), **behaviour(test)) as gpu:
            yield Backend(name, gpu)
    else:
        yield Backend(name)


def behaviour(test: str) -> dict[str, Any]:
    """seed and completion of a virtual GPU for the test of this name, the same every time."""
    number = zlib.crc32(test.encode())
    return {
        "seed": SEEDS[number % len(SEEDS)],
        "completion": COMPLETIONS[number // len(SEEDS) % len(COMPLETIONS)],
    }


@contextlib.contextmanager
def pinned(isa: str) -> Iterator[None]:
    """Pins the CPU kernels to one instruction set."""
    from moe_ext import _C

    before = _C.cpu_isa()
    _C.set_cpu_isa(isa)
    try:
        yield
    finally:
        _C.set_cpu_isa(before)


# Which tests run where --------------------------------------------------------------------------------------------

# One source, compiled with flags that differ only by instructions for matrix products: everything else is the same
# code in all three, and is tested on the best that the machine has.
SHARED_KERNELS = ("cpu:avx512", "cpu:avx512bf16", "cpu:amx")
PRODUCTS = ("gemm", "experts", "soft_moe", "determinism", "properties", "large", "products")

# Files, and tests, of what lies above the kernels: one instruction set and one virtual chip are enough.
ABOVE_THE_KERNELS = (
    "test_autocast.py",
    "test_compile.py",
    "test_errors.py",
    "test_opcheck.py",
    "test_saved_bytes.py",
    "test_slot_positions.py",  # whose kernel is the same for every instruction set
    "test_transforms.py",
    "test_tf32.py",
    "test_fused_experts.py::test_gradcheck",
    "test_fused_experts.py::test_a_workspace_limit_too_small_names_the_bytes",
    "test_grouped_gemm.py::test_gradcheck",
    "test_route.py::test_wrong_arguments_are_errors",
    "test_permute.py::test_wrong_arguments_are_errors",
    "test_combine.py::test_wrong_arguments_are_errors",
    "test_expert_choice.py::test_wrong_raw_arguments_are_errors",
    "test_auction.py::test_wrong_raw_arguments_are_errors",
    "test_sinkhorn.py::test_wrong_raw_arguments_are_errors",
    "test_soft_moe.py::test_wrong_raw_arguments_are_errors",
)

BF16 = {"dtype": (torch.bfloat16,)}
# On a virtual GPU other than the first, only these tests, and of their parameters only these: what depends on the chip
# is the choice of an engine for products, and its tiles.
ON_EVERY_CHIP: dict[str, Mapping[str, tuple[Any, ...]]] = {
    "test_fused_experts.py::test_cases": BF16,
    "test_fused_experts.py::test_options": {**BF16, "activation": ("swiglu", "clamped_swiglu", "relu2")},
    "test_fused_experts.py::test_poisoned_memory": BF16,
    "test_grouped_gemm.py::test_blocks": BF16,
    "test_grouped_gemm.py::test_strides": BF16,
    "test_grouped_gemm.py::test_wgrad_accumulates": {**BF16, "layout": ("contiguous", "misaligned")},
    "test_large.py::test_fused_experts": BF16,
    "test_combine.py::test_segment_sum": {**BF16, "case": ("balanced", "sentinels")},
    "test_combine.py::test_cases": {**BF16, "case": ("balanced", "sentinels")},
    "test_permute.py::test_cases": {"dtype": (torch.int32,), "case": ("balanced", "sentinels")},
    "test_permute.py::test_gather_rows_and_its_gradient": {**BF16, "case": ("balanced", "sentinels")},
    "test_route.py::test_deepseek_v3_gate": BF16,
}


# Of these tests not the cases with all of these parameters: sized for the blocks of CPU kernels, or just large, they
# would take many seconds on a virtual GPU. Their neighbours in the lists of cases are there for it.
TOO_LONG_TO_EMULATE: dict[str, Mapping[str, tuple[Any, ...]]] = {
    "test_fused_experts.py::test_blocks": {"case": ("hidden_blocked", "intermediate_blocked", "both_blocked")},
    "test_grouped_gemm.py::test_blocks": {"case": ("rows_and_k", "k_blocked")},
    "test_soft_moe.py::test_blocks": {},
    "test_fused_experts.py::test_strides": {"aligned": (False,), "dtype": (torch.float16, torch.float64)},
    "test_route.py::test_ties_go_to_the_lower_index": {
        "num_experts": (4096,),
        "dtype": (torch.bfloat16, torch.float16, torch.float64),
    },
}


def is_left_out(item: pytest.Item, every_isa: bool) -> bool:
    """Whether a test is one too many on its backend, unless --every-backend is given."""
    params = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
    name = params.get("backend") or f"cpu:{params.get('cpu_isa')}"
    if not name.startswith("cpu:") and params.get("torch_threads", 1) != 1:
        return True  # no kernel would notice
    if name.startswith("cpu:") and params.get("aligned", False):
        return True  # nor would a CPU
    file, test = item.path.name, f"{item.path.name}::{getattr(item, 'originalname', item.name)}"
    best = cpu_backends()[0][-1]
    if "backend" in params and (file in ABOVE_THE_KERNELS or test in ABOVE_THE_KERNELS):
        return name not in (best, VIRTUAL[0], CUDA)
    if name in SHARED_KERNELS and name != best and not every_isa:
        if not any(word in file for word in PRODUCTS):
            return True
        # All multiply float64 in the same way, and the first two float32 and float16.
        dtype = params.get("dtype", torch.bfloat16)
        return dtype is torch.float64 or (name == "cpu:avx512bf16" and dtype is not torch.bfloat16)
    if name in VIRTUAL:
        if _is_among(params, TOO_LONG_TO_EMULATE.get(test)):
            return True
        return name != VIRTUAL[0] and not _is_among(params, ON_EVERY_CHIP.get(test))
    return False


def _is_among(params: Mapping[str, Any], wanted: Mapping[str, tuple[Any, ...]] | None) -> bool:
    if wanted is None:
        return False
    return all(params[key] in values or str(params[key]) in values for key, values in wanted.items() if key in params)
