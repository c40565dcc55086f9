"""cp.async.bulk.tensor and its reductions against a model in NumPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal

import emulator
from emulator.tests.asynchronous.tensor_model import SPANS, Box, loaded, stored

SHARED = 64 * 1024
TYPES = ["uint8", "uint16", "uint32", "int32", "uint64", "int64", "float16", "float32", "float64"]


def coordinates(start: list[int]) -> bytes:
    """What the kernels take: the innermost coordinate first."""
    return np.array((start[::-1] + [0] * 5)[:5], np.int32).tobytes()


def array_of(rng: np.random.Generator, dims: list[int], dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Random elements in an array whose rows are padded to 16 bytes, and the memory it is a view of."""
    size = np.dtype(dtype).itemsize
    pitch = -(-dims[-1] * size // 16) * 16 // size
    memory = rng.integers(0, 256, int(np.prod(dims[:-1])) * pitch * size, dtype=np.uint8)
    whole = memory.view(dtype).reshape([*dims[:-1], pitch])
    return whole[..., : dims[-1]], memory


def draw(rng: np.random.Generator, rank: int, mode: str, dtype: str, strided: bool) -> tuple[list[int], Box]:
    """Random dimensions and a box that may hang over any edge."""
    size = np.dtype(dtype).itemsize
    inner = SPANS[mode] if mode != "none" else 16 * int(rng.integers(1, 5))
    box = [int(n) for n in rng.integers(1, 9 if rank < 3 else 5, rank - 1)] + [inner // size]
    strides = [int(n) for n in rng.integers(1, 4, rank - 1)] + [1] if strided else [1] * rank
    dims = [int(n) for n in rng.integers(1, 12, rank - 1)] + [int(rng.integers(1, 2 * inner // size + 2))]
    start = [int(rng.integers(-b, n + 2)) for n, b in zip(dims, box, strict=True)]
    return dims, Box(dims, box, start, strides)


@pytest.mark.parametrize("rank", range(1, 6))
@pytest.mark.parametrize("mode", SPANS)
def test_load(load_cuda: Callable[..., Any], rank: int, mode: str) -> None:
    kernel = load_cuda("tensor_copies", seed=rank)["load_box"]
    rng = np.random.default_rng(rank * 10 + SPANS[mode])
    for dtype in TYPES:
        dims, box = draw(rng, rank, mode, dtype, strided=bool(rng.integers(2)))
        array, _ = array_of(rng, dims, dtype)
        tensor_map = emulator.TensorMap(array, box.box, swizzle=mode, element_strides=box.element_strides)
        skew = 128 * int(rng.integers(0, 8))
        expected = loaded(array, box, mode, skew, bytes(array.itemsize))
        out = np.zeros(expected.size, np.uint8)
        kernel(1, 64, tensor_map, rank, coordinates(box.start), out.size, skew, out, shared_bytes=SHARED)
        assert_array_equal(out, expected, err_msg=f"{dtype} {box}")


@pytest.mark.parametrize("rank", range(1, 6))
@pytest.mark.parametrize("mode", SPANS)
def test_store(load_cuda: Callable[..., Any], rank: int, mode: str) -> None:
    kernel = load_cuda("tensor_copies", seed=rank)["store_box"]
    rng = np.random.default_rng(rank * 10 + SPANS[mode])
    for dtype in TYPES:
        dims, box = draw(rng, rank, mode, dtype, strided=bool(rng.integers(2)))
        array, memory = array_of(rng, dims, dtype)
        tensor_map = emulator.TensorMap(array, box.box, swizzle=mode, element_strides=box.element_strides)
        shared = rng.integers(0, 256, int(np.prod(box.counts())) * array.itemsize, dtype=np.uint8)
        skew = 128 * int(rng.integers(0, 8))
        expected, expected_memory = array_of(rng, dims, dtype)
        expected_memory[...] = memory
        for index, at in stored(array, box, mode, skew, shared):
            expected[index] = shared[at : at + array.itemsize].view(dtype)[0]
        kernel(
            1, 64, tensor_map, rank, coordinates(box.start), shared.size, skew, shared, 0,
            shared_bytes=SHARED, reachable=[memory],
        )  # fmt: skip
        assert_array_equal(memory, expected_memory, err_msg=f"{dtype} {box}")


OPERATIONS = ["", "add", "min", "max", "inc", "dec", "and", "or", "xor"]
FUNCTIONS: dict[str, Callable[[Any, Any], Any]] = {
    "add": np.add,
    "min": np.minimum,
    "max": np.maximum,
    "inc": lambda old, b: np.where(old >= b, 0, old + 1),
    "dec": lambda old, b: np.where((old == 0) | (old > b), b, old - 1),
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
}
REDUCTIONS = {
    "add": "uint32 int32 uint64 float16 float32 bfloat16",
    "min": "uint32 int32 uint64 int64 float16 bfloat16",
    "max": "uint32 int32 uint64 int64 float16 bfloat16",
    "inc": "uint32",
    "dec": "uint32",
    "and": "uint32 int32 uint64",
    "or": "uint32 int32 uint64",
    "xor": "uint32 int32 uint64",
}


@pytest.mark.parametrize("operation", REDUCTIONS)
def test_reduction(load_cuda: Callable[..., Any], operation: str) -> None:
    kernel = load_cuda("tensor_copies")["store_box"]
    rng = np.random.default_rng(OPERATIONS.index(operation))
    for name in REDUCTIONS[operation].split():
        dtype = getattr(torch, name)
        target = torch.tensor(rng.integers(0, 40, (20, 24)).astype(np.int64)).to(dtype)
        values = torch.tensor(rng.integers(0, 40, (8, 16)).astype(np.int64)).to(dtype)
        expected = target.to(torch.float64).numpy() if dtype.is_floating_point else target.numpy().copy()
        part = values.to(torch.float64).numpy() if dtype.is_floating_point else values.numpy()
        # The box begins four columns before the array's last sixteen and five rows before its end.
        rows, columns = slice(15, 20), slice(16, 24)
        expected[rows, columns] = FUNCTIONS[operation](expected[rows, columns], part[:5, :8])
        tensor_map = emulator.TensorMap(target, (8, 16))
        raw = values.view(torch.uint8).numpy().reshape(-1)
        kernel(
            1, 64, tensor_map, 2, coordinates([15, 16]), raw.size, 0, raw, OPERATIONS.index(operation),
            shared_bytes=SHARED, reachable=[target],
        )  # fmt: skip
        result = target.to(torch.float64).numpy() if dtype.is_floating_point else target.numpy()
        assert_array_equal(result, expected, err_msg=name)


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32", "float64"])
def test_outside_becomes_nan(load_cuda: Callable[..., Any], name: str) -> None:
    kernel = load_cuda("tensor_copies")["load_box"]
    dtype = getattr(torch, name)
    array = torch.ones(3, 16, dtype=dtype)
    out = torch.zeros(4, 16, dtype=dtype)
    tensor_map = emulator.TensorMap(array, (4, 16), oob="nan")
    size = out.numel() * out.itemsize
    kernel(1, 32, tensor_map, 2, coordinates([-1, 8]), size, 0, out, shared_bytes=SHARED)
    inside = np.zeros((4, 16), bool)
    inside[1:4, :8] = True
    assert_array_equal(out.isnan().numpy(), ~inside)
    assert_array_equal(out.float().numpy()[inside], 1)


@pytest.mark.parametrize("blocks", [1, 2, 4])
def test_multicast(load_cuda: Callable[..., Any], blocks: int, completion: str) -> None:
    for seed in range(3):
        kernel = load_cuda("tensor_copies", seed=seed, completion=completion)["multicast_box"]
        array = np.random.default_rng(seed).integers(0, 256, (8 * blocks, 64), dtype=np.uint8)
        out = np.zeros((2 * blocks, *array.shape), np.uint8)
        kernel(
            2 * blocks, 64, emulator.TensorMap(array, (8, 64)), 8, 64, out, cluster=blocks, shared_bytes=array.nbytes
        )
        assert_array_equal(out, np.broadcast_to(array, out.shape))


def test_remade_map(load_cuda: Callable[..., Any], completion: str) -> None:
    kernel = load_cuda("tensor_copies", completion=completion)["remade_map"]
    gpu = kernel.gpu
    array = gpu.array(np.arange(7 * 12, dtype=np.float32).reshape(7, 12))
    template = emulator.TensorMap(np.zeros((4, 4), np.uint32), (1, 4), swizzle="32B", oob="zero")
    out = np.zeros((7, 8), np.float32)
    place = gpu.empty(128, np.uint8)
    kernel(1, 64, template, place, array, 8, 7, 48, out, 0)
    assert_array_equal(out, array[:, :8])
    with pytest.raises(emulator.Fault) as caught:
        kernel(1, 64, template, place, array, 8, 7, 48, out, 1)
    assert caught.value.kind == "missing_proxy_fence"


def test_moved_map(load_cuda: Callable[..., Any]) -> None:
    kernel = load_cuda("tensor_copies")["moved_map"]
    gpu = kernel.gpu
    old, new = gpu.zeros(32), gpu.array(np.arange(32, dtype=np.float32))
    place = gpu.array(emulator.TensorMap(old, (32,)).storage)
    out = np.zeros(32, np.float32)
    kernel(1, 32, place, new, out)
    assert_array_equal(out, new)


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"skew": 64}, "misaligned"),
        ({"rank": 3}, "bad_descriptor"),
        ({"bytes": 16 * 64 + 16}, "deadlock"),
        ({"map": bytes(128)}, "bad_descriptor"),
        ({"box": (16, 256)}, "out_of_bounds"),
        ({"dims": (64, 64)}, "out_of_bounds"),
    ],
)
def test_faults(load_cuda: Callable[..., Any], change: dict[str, Any], kind: str) -> None:
    kernel = load_cuda("tensor_copies")["load_box"]
    array = kernel.gpu.array(np.ones((32, 64), np.uint8))
    out = np.zeros(4096, np.uint8)
    tensor_map = emulator.TensorMap(array, change.get("box", (16, 64)), dims=change.get("dims"))
    # Begins inside and crosses the end: what lies farther off may be another array.
    start = coordinates([24, 0] if "dims" in change else [0, 0])
    with pytest.raises(emulator.Fault) as caught:
        kernel(
            1, 32, change.get("map", tensor_map), change.get("rank", 2), start, change.get("bytes", 16 * 64),
            change.get("skew", 0), out, shared_bytes=2048,
        )  # fmt: skip
    assert caught.value.kind == kind
