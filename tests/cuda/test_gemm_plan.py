"""The choice of CUDA kernel and tile: numbers only, so no GPU is needed."""

from itertools import product
from typing import Any

import pytest

from moe_ext import _C

# Compute capability: multiprocessors and shared memory of a block, of one well-known chip each.
CHIPS = {
    80: (108, 166912),
    86: (84, 101376),
    89: (142, 101376),
    90: (132, 232448),
    100: (148, 232448),
    120: (188, 101376),
}
HALVES = ("bfloat16", "float16")


def plan(capability: int, **changes: Any) -> dict[str, Any]:
    multiprocessors, shared = CHIPS[capability]
    problem = {
        "wgrad": False, "capability": capability, "multiprocessors": multiprocessors,
        "shared_memory_per_block": shared, "dtype": "bfloat16", "allow_tf32": False, "aligned": True,
        "num_rows": 65536, "num_experts": 128, "n": 1536, "k": 2048, "deterministic": False,
    }  # fmt: skip
    return _C.gemm_plan(**(problem | changes))


def family(found: dict[str, Any]) -> str:
    return str(found["plan"]).split()[0]


SIZES = (1, 8, 64, 72, 256, 2880, 14336)
ROWS = (0, 1, 16, 1000, 10**6, 2**31 - 2)


@pytest.mark.parametrize("wgrad", [False, True])
@pytest.mark.parametrize("capability", CHIPS)
def test_every_plan_fits_its_chip(capability: int, wgrad: bool) -> None:
    for dtype, tf32, aligned, rows, experts, n, k, deterministic in product(
        ("float32", *HALVES, "float64"), (False, True), (False, True), ROWS, (1, 8, 256), SIZES, SIZES, (False, True)
    ):
        found = plan(
            capability, wgrad=wgrad, dtype=dtype, allow_tf32=tf32, aligned=aligned, num_rows=rows,
            num_experts=experts, n=n, k=k, deterministic=deterministic,
        )  # fmt: skip
        assert found["shared_bytes"] <= CHIPS[capability][1], found
        assert found["block_m"] > 0, found
        assert found["stages"] >= 2, found
        tensor_cores = aligned and (dtype in HALVES or (dtype == "float32" and tf32))
        assert (family(found) != "simt") == tensor_cores, found
        assert family(found) != "wgmma" or (capability == 90 and dtype in HALVES), found


@pytest.mark.parametrize("dtype", ["float32", *HALVES, "float64"])
@pytest.mark.parametrize("capability", CHIPS)
def test_a_deterministic_plan_knows_nothing_of_the_batch(capability: int, dtype: str) -> None:
    for wgrad, tf32, n in product((False, True), (False, True), SIZES):
        plans = {
            str(plan(capability, wgrad=wgrad, dtype=dtype, allow_tf32=tf32, n=n, num_rows=rows, deterministic=True))
            for rows in ROWS
        }
        assert len(plans) == 1, plans


def test_few_rows_get_small_tiles() -> None:
    for capability in CHIPS:
        heights = [plan(capability, num_rows=rows)["block_m"] for rows in (128, 128 * 64, 128 * 1024)]
        assert heights == sorted(heights), capability
        assert heights[0] == 16, capability
        assert heights[2] == 128, capability


def test_the_weight_gradient_does_not_depend_on_the_rows() -> None:
    for capability in CHIPS:
        assert len({str(plan(capability, wgrad=True, num_rows=rows)) for rows in ROWS}) == 1


def test_it_prints() -> None:
    assert plan(80)["plan"] == "mma 128x256x64, 3 stages"
    assert plan(90)["plan"] == "wgmma 128x256x64, 3 stages"
    assert plan(80, dtype="float32")["plan"] == "simt 64x64x16, 2 stages"


def test_an_unknown_dtype_is_named() -> None:
    with pytest.raises(ValueError, match="dtype must be float32, bfloat16, float16 or float64, got 'int8'"):
        plan(80, dtype="int8")
