"""cuTensorMapEncodeTiled refuses what the driver refuses."""

import ctypes

import numpy as np
import pytest

import emulator

BF16, F32, U8, U32 = 9, 7, 0, 2


def encode(lib, address, **changes):
    given = {
        "type": BF16,
        "dims": [256, 64],
        "strides": [512],
        "box": [64, 64],
        "steps": [1, 1],
        "interleave": 0,
        "swizzle": 3,
        "fill": 0,
        "offset": 0,
        "descriptor": 0,
    } | changes
    raw = np.zeros(256, np.uint8)
    start = -raw.ctypes.data % 64 + given["descriptor"]
    reason = ctypes.create_string_buffer(256)
    error = lib.encode(
        raw[start:],
        given["type"],
        given.get("rank", len(given["dims"])),
        ctypes.c_void_p(address + given["offset"]).value,
        np.array(given["dims"], np.uint64),
        np.array(given["strides"], np.uint64),
        np.array(given["box"], np.uint32),
        np.array(given["steps"], np.uint32),
        given["interleave"],
        given["swizzle"],
        given["fill"],
        reason,
    )
    return error, reason.value.decode()


@pytest.fixture
def array(gpu):
    return gpu.zeros((64, 256), np.uint16)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"dims": [1 << 32, 64], "strides": [(1 << 40) - 16]},
        {"swizzle": 0, "box": [256, 256]},
        {"type": F32, "box": [32, 8]},
        {"fill": 1},
        {"dims": [8], "strides": [], "box": [8], "steps": [1]},
        {"steps": [0, 8]},  # the innermost is ignored
        {"dims": [8, 4, 4], "strides": [32, 128], "box": [8, 2, 2], "steps": [1] * 3, "interleave": 2, "swizzle": 1},
    ],
)
def test_accepted(lib, gpu, array, changes):
    assert encode(lib, array.ctypes.data, **changes) == (0, "")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"offset": 8}, "not aligned to 16 bytes"),
        ({"descriptor": 32}, "the descriptor is not aligned to 64 bytes"),
        ({"rank": 0}, "rank is 0"),
        ({"rank": 6}, "rank is 6"),
        ({"type": 16}, "data type 16"),
        ({"dims": [0, 64]}, "dimension 0 is 0"),
        ({"dims": [(1 << 32) + 1, 64]}, "dimension 0 is 4294967297"),
        ({"strides": [24]}, "stride 0 is 24 bytes, want a multiple of 16"),
        ({"strides": [1 << 40]}, "less than 2^40"),
        ({"box": [0, 64]}, "box 0 is 0"),
        ({"box": [64, 257]}, "box 1 is 257"),
        ({"box": [72, 64]}, "more than the swizzle's span of 128"),
        ({"box": [64, 64], "swizzle": 1}, "more than the swizzle's span of 32"),
        ({"box": [4, 64]}, "want a multiple of 16"),
        ({"steps": [1, 9]}, "element stride 1 is 9"),
        ({"steps": [1, 0]}, "element stride 1 is 0"),
        ({"type": U32, "box": [32, 8], "fill": 1}, "wants a floating-point type"),
        ({"swizzle": 7}, "swizzle 7"),
        ({"interleave": 1}, "rank is 2, want at least 3"),
        (
            {"dims": [8, 4, 4], "strides": [32, 128], "box": [8, 2, 2], "steps": [1] * 3, "interleave": 2},
            "interleave 32B wants swizzle 32B",
        ),
        (
            {"dims": [8, 4, 4], "strides": [16, 64], "box": [8, 2, 2], "steps": [1] * 3, "interleave": 2, "swizzle": 1},
            "want a multiple of 32",
        ),
    ],
)
def test_refused(lib, gpu, array, changes, reason):
    error, text = encode(lib, array.ctypes.data, **changes)
    assert error == 1
    assert reason in text


def test_ampere_has_no_tensor_maps(lib):
    with emulator.Gpu("A100") as gpu:
        assert encode(lib, gpu.zeros((64, 256), np.uint16).ctypes.data)[0] == 801


def test_python_encodes_the_same(gpu):
    array = gpu.zeros((3, 64, 256), np.float32)
    plain = emulator.TensorMap(array, (1, 8, 32), swizzle="128B")
    assert len(bytes(plain)) == 128
    by_hand = emulator.TensorMap(
        array, (1, 8, 32), swizzle="128B", dims=(3, 64, 256), strides=(65536, 1024), element_strides=(1, 1, 1)
    )
    assert bytes(plain) == bytes(by_hand)
    with pytest.raises(ValueError, match="more than the swizzle's span"):
        emulator.TensorMap(array, (1, 8, 64), swizzle="128B")
    with pytest.raises(ValueError, match="bytes apart"):
        emulator.TensorMap(array[..., ::2], (1, 8, 32))
    with pytest.raises(ValueError, match="want one of"):
        emulator.TensorMap(array, (1, 8, 32), swizzle="96B")
