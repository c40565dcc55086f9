"""The elementary functions and number formats under the kernels, compiled alone with the flags of each instruction set.

Functions are compared with float64 over every 499th float32 there is: 8.6 million arguments, subnormals, infinities and
NaN among them.
"""

import ctypes
import functools
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[2]
ISAS = ("portable", "avx2", "avx512")  # the others compile these functions with nothing that matters here

Floats = NDArray[np.float32]


def flags_of(isa: str) -> list[str]:
    """The compiler flags of an instruction set, read from where the build has them."""
    text = (ROOT / "cmake" / "cpu_isa.cmake").read_text()
    lists = dict(re.findall(r"set\((MOE_ISA_\w*FLAGS\w*) ([^)]*)\)", text))

    def expand(name: str) -> list[str]:
        words = lists[name].replace('"', "").split()
        return [flag for word in words for flag in (expand(word[2:-1]) if word.startswith("${") else [word])]

    return expand("MOE_ISA_COMMON_FLAGS") + expand(f"MOE_ISA_FLAGS_{isa}")


Library = Callable[[str, NDArray, type], NDArray]


@functools.cache
def build(isa: str, folder: Path) -> Library:
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler found")
    target = folder / f"math_{isa}.so"
    source = Path(__file__).with_name("math_functions.cpp")
    includes = [f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'csrc' / 'include'}"]
    command = [*compiler.split(), "-std=c++20", "-shared", "-fPIC", *flags_of(isa), *includes, str(source), "-o"]
    subprocess.run([*command, str(target)], check=True)
    library = ctypes.CDLL(str(target))

    def call(name: str, x: NDArray, result: type) -> NDArray:
        y = np.empty(x.shape, result)
        getattr(library, name)(
            x.ctypes.data_as(ctypes.c_void_p), y.ctypes.data_as(ctypes.c_void_p), ctypes.c_int64(x.size)
        )
        return y

    return call


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("math")


@pytest.fixture(params=ISAS)
def library(request: pytest.FixtureRequest, folder: Path) -> Library:
    from moe_ext import _C

    if request.param not in _C.cpu_isas_available():
        pytest.skip(f"{request.param} is not available here")
    return build(request.param, folder)


@functools.cache
def sweep() -> Floats:
    return np.arange(0, 2**32, 499, dtype=np.uint64).astype(np.uint32).view(np.float32)


def wide_softplus(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.logaddexp(x, 0.0)


def wide_erf(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return torch.erf(torch.from_numpy(x)).numpy()


def wide_sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return torch.sigmoid(torch.from_numpy(x)).numpy()


def check(library: Library, name: str, truth: Callable[[NDArray], NDArray], x: Floats, ulps: float) -> None:
    """Within so many units in the last place of the float32 that is the truth; infinities and NaN where it has them."""
    with np.errstate(all="ignore"):
        expected = truth(x.astype(np.float64))
        rounded = expected.astype(np.float32)
    actual = library(name, x, np.float32)
    assert np.array_equal(np.isnan(actual), np.isnan(rounded))
    infinite = np.isinf(rounded)
    assert np.array_equal(actual[infinite], rounded[infinite])
    finite = np.isfinite(rounded)
    error = np.abs(actual[finite].astype(np.float64) - expected[finite]) / np.spacing(np.abs(rounded[finite]))
    worst = int(error.argmax())
    assert error[worst] <= ulps, (
        f"{name}({x[finite][worst]!r}) is {actual[finite][worst]!r}, {error[worst]:.2f} ulp off"
    )


def test_exp(library: Library) -> None:
    check(library, "exp_of", np.exp, sweep(), 1.5)


def test_exp_of_negative(library: Library) -> None:
    x = sweep()
    check(library, "exp_of_negative_of", np.exp, x[(x >= -87) & (x <= 0) | np.isnan(x)], 1.5)
    assert (library("exp_of_negative_of", x[x < -87], np.float32) == 0).all()


def test_tanh(library: Library) -> None:
    check(library, "tanh_of", np.tanh, sweep(), 1.5)


def test_erf(library: Library) -> None:
    check(library, "erf_of", wide_erf, sweep(), 1.5)


def test_softplus(library: Library) -> None:
    check(library, "softplus_of", wide_softplus, sweep(), 3.0)


def test_log1p(library: Library) -> None:
    unit = sweep()[(sweep() >= 0) & (sweep() <= 1)]
    check(library, "log1p_of", np.log1p, unit, 3.0)


def test_sigmoid(library: Library) -> None:
    """Below -87 the result is subnormal and may be flushed to 0, as 1 / (1 + inf) does."""
    x = sweep()
    check(library, "sigmoid_of", wide_sigmoid, x[~(x < -87)], 3.0)
    low = library("sigmoid_of", x[x < -87], np.float32)
    assert (low >= 0).all()
    assert (low < 1.7e-38).all()


def test_odd_functions_keep_the_sign_of_zero(library: Library) -> None:
    zeros = np.array([0.0, -0.0], np.float32)
    for name in ("tanh_of", "erf_of"):
        assert np.array_equal(np.signbit(library(name, zeros, np.float32)), [False, True])


@pytest.mark.parametrize(
    ("name", "dtype"), [("from_bfloat16", torch.bfloat16), ("from_float16", torch.float16)], ids=["bfloat16", "float16"]
)
def test_every_16_bit_float_widens_exactly(library: Library, name: str, dtype: torch.dtype) -> None:
    bits = np.arange(2**16, dtype=np.uint32).astype(np.uint16)
    actual = library(name, bits, np.float32)
    expected = torch.from_numpy(bits.view(np.int16)).view(dtype).float().numpy()
    number = ~np.isnan(expected)
    assert np.array_equal(actual[number].view(np.int32), expected[number].view(np.int32))
    assert np.isnan(actual[~number]).all()


@pytest.mark.parametrize(
    ("name", "dtype"), [("to_bfloat16", torch.bfloat16), ("to_float16", torch.float16)], ids=["bfloat16", "float16"]
)
def test_rounding_is_to_nearest_even(library: Library, name: str, dtype: torch.dtype) -> None:
    """As PyTorch rounds; with every midpoint of two neighbours and its two neighbours in float32."""
    every = torch.arange(2**15, dtype=torch.int32).to(torch.int16).view(dtype).float().numpy()
    every = every[np.isfinite(every)]
    middle = ((every[:-1].astype(np.float64) + every[1:]) / 2).astype(np.float32)
    near = [middle, np.nextafter(middle, np.float32(0)), np.nextafter(middle, np.float32(np.inf))]
    x = np.concatenate([sweep(), *near, *(-values for values in near)])
    actual = torch.from_numpy(library(name, x, np.int16)).view(dtype)
    expected = torch.from_numpy(x).to(dtype)
    assert torch.equal(actual.isnan(), expected.isnan())
    number = ~expected.isnan()
    assert torch.equal(actual[number].view(torch.int16), expected[number].view(torch.int16))


@pytest.mark.parametrize("name", ["exp_of", "sigmoid_of", "softplus_of", "tanh_of", "erf_of"])
def test_same_bits_on_every_instruction_set(library: Library, folder: Path, name: str) -> None:
    x = sweep()[~np.isnan(sweep())]
    expected = build("portable", folder)(name, x, np.int32)
    assert np.array_equal(library(name, x, np.int32), expected)
