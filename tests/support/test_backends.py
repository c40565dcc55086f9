"""The choice of tests for each backend names tests that there are, and a copy is what it was made of."""

import re
from pathlib import Path

import pytest
import torch

import moe_ext
from tests.support import backends, virtual
from tests.support.backends import Backend
from tests.support.inputs import strided_variants

OPS = Path(__file__).parents[1] / "ops"


@pytest.mark.parametrize("name", [*backends.ABOVE_THE_KERNELS, *backends.ON_EVERY_CHIP, *backends.TOO_LONG_TO_EMULATE])
def test_what_is_chosen_exists(name: str) -> None:
    file, _, test = name.partition("::")
    text = (OPS / file).read_text()
    assert re.search(rf"^def {test}\(", text, re.MULTILINE) if test else "def test_" in text
    for parameter in (*backends.ON_EVERY_CHIP.get(name, ()), *backends.TOO_LONG_TO_EMULATE.get(name, ())):
        assert re.search(rf"^def {test}\([^)]*\b{parameter}: ", text, re.MULTILINE), parameter


def test_behaviour_of_virtual_gpus_varies() -> None:
    chosen = [tuple(backends.behaviour(f"test_{number}").values()) for number in range(100)]
    assert len(set(chosen)) == len(backends.SEEDS) * len(backends.COMPLETIONS)


@pytest.mark.virtual
def test_copies_keep_strides_and_gaps() -> None:
    tensor = torch.randn(5, 6, 7)
    with backends.entered(backends.VIRTUAL[0]) as backend:
        for name, variant in strided_variants(tensor):
            copy = backend.put(variant)
            assert torch.equal(copy, tensor), name
            assert copy.stride() == variant.stride()
            assert copy.storage_offset() == variant.storage_offset()
            assert copy.untyped_storage().nbytes() >= variant.untyped_storage().nbytes()
            assert copy.data_ptr() != variant.data_ptr()
        nested = backend.put({"a": (tensor, None, 3), "b": moe_ext.Routing(tensor, tensor)})
        assert isinstance(nested["b"], moe_ext.Routing)
        assert nested["a"][1:] == (None, 3)
        assert backend.put(torch.ones(2, requires_grad=True)).requires_grad


@pytest.mark.virtual
def test_cpu_kernels_come_back() -> None:
    logits = torch.randn(9, 8)
    before = moe_ext.route(logits, 2)
    for _ in range(2):
        with virtual.ops_on("sm_80") as gpu:
            inside = moe_ext.route(Backend("virtual:sm_80").put(logits), 2)
            assert len(gpu.launches) == 1
            assert torch.equal(inside.topk_ids, before.topk_ids)
        assert torch.equal(moe_ext.route(logits, 2).topk_weights, before.topk_weights)
        assert len(gpu.launches) == 1


@pytest.mark.virtual
def test_a_fault_is_raised_with_its_report() -> None:
    """A tensor from before is memory that the GPU does not know."""
    import emulator

    logits = torch.randn(9, 8)
    block = virtual.ops_on("sm_80")
    block.__enter__()
    with pytest.raises(RuntimeError, match="out_of_bounds"):
        moe_ext.route(logits, 2)
    with pytest.raises(emulator.Fault, match=r"out_of_bounds(.|\n)*source .*/route/"):
        block.__exit__(None, None, None)
    with virtual.ops_on("sm_80"):
        moe_ext.route(torch.randn(9, 8), 2)


def test_seeds_of_examples() -> None:
    assert all(Backend("cpu:portable").takes(seed) for seed in range(8))
    assert [Backend("virtual:sm_80").takes(seed) for seed in range(8)] == [True, False, False, False] * 2
