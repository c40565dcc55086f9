"""wgmma.mma_async: types, sizes, layouts and swizzles, against NumPy."""

from __future__ import annotations

import zlib
from functools import cache
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from emulator.tests.matrix import formats, ptx_text, wgmma_kernels
from emulator.tests.matrix.descriptors import SPANS, Layout, descriptor, place
from emulator.tests.matrix.formats import BYTES
from emulator.tests.matrix.wgmma_kernels import Form

FORMS = [
    *(Form(n) for n in range(8, 257, 8)),
    *(Form(n, registers=True) for n in (8, 40, 128, 256)),
    *(Form(n, a, a, d) for n in (8, 72, 256) for a, d in (("f16", "f32"), ("f16", "f16"), ("tf32", "f32"))),
    *(Form(n, a, b, d) for n in (16, 40) for a in ("e4m3", "e5m2") for b in ("e4m3", "e5m2") for d in ("f32", "f16")),
    *(
        Form(n, a, b, "s32", registers=r, saturate=s)
        for n in (24, 48)
        for a in ("s8", "u8")
        for b in ("s8", "u8")
        for r in (False, True)
        for s in (False, True)
    ),
    *(Form(32, a, a, d, registers=True) for a, d in (("f16", "f16"), ("tf32", "f32"), ("e4m3", "f32"))),
    *(
        Form(n, a_k_major=x, b_k_major=y, a=t, b=t)
        for n in (8, 64, 200)
        for x in (False, True)
        for y in (False, True)
        for t in ("bf16", "f16")
        if not (x and y)
    ),
    *(Form(96, registers=True, b_k_major=False),),
    *(Form(16, t, t, scale_a=x, scale_b=y) for t in ("bf16", "tf32") for x in (1, -1) for y in (1, -1)),
]
FORMS = list(dict.fromkeys(FORMS))


@cache
def check_all() -> None:
    """Lets ptxas see all kernels, at once."""
    ptx_text.module([wgmma_kernels.source(form) for form in FORMS], "sm_90a", shared=True)


@cache
def text(form: Form) -> str:
    assert form in FORMS
    check_all()
    return ptx_text.module(wgmma_kernels.source(form), "sm_90a", shared=True, check=False)


def layout(
    swizzle: str, k_major: bool, element: int, lines: int, k: int, start: int, pad: int = 0
) -> tuple[Layout, int]:
    """A layout with no gaps but `pad` bytes between its blocks, and its end."""
    span = SPANS[swizzle]
    block = 8 * span + pad
    if k_major:
        # Where nothing is swizzled, columns of pieces follow each other; the swizzled leading offset is not used.
        stride = block
        leading = lines // 8 * block if swizzle == "none" else 16
        end = start + lines // 8 * block * (k * element // 16 if swizzle == "none" else 1)
        return Layout(swizzle, k_major, element, start, leading, stride), end
    if swizzle == "none":
        stride, leading = block, lines // 8 * block
        return Layout(swizzle, k_major, element, start, leading, stride), start + k // 8 * leading
    blocks = -(-lines * element // span)
    leading, stride = k // 8 * block, block
    return Layout(swizzle, k_major, element, start, leading, stride), start + blocks * leading


def align(offset: int, to: int) -> int:
    return -(-offset // to) * to


def multiply(
    form: Form,
    make: formats.Make = formats.grid_values,
    swizzles: tuple[str, str] = ("128B", "128B"),
    pad: int = 0,
    slices: int = 1,
    take: int = 0,
    **options: Any,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Runs it. Tiles hold `slices` times k, of which slice `take` is multiplied."""
    rng = np.random.default_rng(zlib.crc32(f"{form}{swizzles}".encode()))
    a = make(rng, (64, form.k), form.a)
    b = make(rng, (form.k, form.n), form.b)
    c = make(rng, (64, form.n), form.d)
    image = np.full(wgmma_kernels.SHARED, 0x7F, np.uint8)
    k_all = form.k * slices
    layout_a, end = layout(swizzles[0], form.a_k_major, BYTES[form.a], 64, k_all, 0, pad)
    layout_b, end = layout(swizzles[1], form.b_k_major, BYTES[form.b], form.n, k_all, align(end, 1024), pad)
    assert end <= len(image)
    place(image, formats.encode(a, form.a), layout_a, take * form.k)
    place(image, formats.encode(b.T, form.b), layout_b, take * form.k)

    def advance(of: Layout) -> int:
        if of.k_major:
            return take * (2 * of.leading if of.swizzle == "none" else 32)
        return take * 2 * (of.leading if of.swizzle == "none" else of.stride)

    descriptors = [descriptor(of, advance=advance(of)) for of in (layout_a, layout_b)]
    got = wgmma_kernels.run(form, text(form), image[: align(end, 1024)], descriptors, a, c, **options)
    return got, form.scale_a * form.scale_b * a, b, c


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_exact_inputs(form: Form) -> None:
    got, a, b, c = multiply(form)
    want = a @ b + c
    if form.d == "s32" and form.saturate:
        want = np.clip(want, -(2**31), 2**31 - 1)
    assert_array_equal(got, want)


@pytest.mark.parametrize("pad", [0, 1024])
@pytest.mark.parametrize("swizzle_b", SPANS)
@pytest.mark.parametrize("swizzle_a", SPANS)
@pytest.mark.parametrize("majors", ["kk", "mk", "kn", "mn"])
def test_layouts(majors: str, swizzle_a: str, swizzle_b: str, pad: int) -> None:
    form = Form(64, a_k_major=majors[0] == "k", b_k_major=majors[1] == "k")
    got, a, b, c = multiply(form, swizzles=(swizzle_a, swizzle_b), pad=pad)
    assert_array_equal(got, a @ b + c)


@pytest.mark.parametrize("swizzle", SPANS)
@pytest.mark.parametrize("n", [8, 200, 256])
@pytest.mark.parametrize("majors", ["kk", "mn"])
def test_sizes_of_swizzled_b(majors: str, n: int, swizzle: str) -> None:
    form = Form(n, a_k_major=majors[0] == "k", b_k_major=majors[1] == "k")
    if form not in FORMS:
        form = form._replace(n={256: 200}.get(n, n))
    got, a, b, c = multiply(form, swizzles=("128B", swizzle))
    assert_array_equal(got, a @ b + c)


@pytest.mark.parametrize("take", [0, 1, 2, 3])
@pytest.mark.parametrize(("swizzle", "slices"), [("none", 4), ("64B", 2), ("128B", 4)])
@pytest.mark.parametrize("majors", ["kk", "mn"])
def test_steps_along_k(majors: str, swizzle: str, slices: int, take: int) -> None:
    """The second and later steps of a tile start inside of the swizzled rows."""
    form = Form(64, a_k_major=majors[0] == "k", b_k_major=majors[1] == "k")
    got, a, b, c = multiply(form, swizzles=(swizzle, swizzle), slices=slices, take=take % slices)
    assert_array_equal(got, a @ b + c)


@pytest.mark.parametrize("name", ["tf32", "e4m3", "s8"])
@pytest.mark.parametrize("swizzle", SPANS)
def test_swizzles_of_other_elements(swizzle: str, name: str) -> None:
    form = next(form for form in FORMS if form.a == name and not form.registers)
    got, a, b, c = multiply(form, swizzles=(swizzle, swizzle))
    assert_array_equal(got, a @ b + c)


@pytest.mark.parametrize("name", ["bf16", "s8", "f16"])
def test_scale_d_false_ignores_accumulators(name: str) -> None:
    form = next(form for form in FORMS if form.a == name and form.b_k_major and form.a_k_major)
    got, a, b, c = multiply(form, scale_d=False)
    assert np.abs(c).any()
    assert_array_equal(got, a @ b)


@pytest.mark.parametrize("accumulate", ["sequential", "exact", "truncate"])
@pytest.mark.parametrize(
    "form", [Form(64), Form(8, "f16", "f16", "f16"), Form(16, "e4m3", "e5m2")], ids=lambda f: f.name
)
def test_random_inputs(form: Form, accumulate: str) -> None:
    got, a, b, c = multiply(form, formats.random_values, accumulate=accumulate)
    exact = a @ b + c
    if accumulate == "exact":
        assert_array_equal(got, formats.decode(formats.encode_nearest(exact, form.d), form.d))
        return
    size = np.abs(a) @ np.abs(b) + np.abs(c)
    rounding = {"f32": 2.0**-24, "f16": 2.0**-11}[form.d] * np.abs(exact)
    if accumulate == "sequential":
        assert (np.abs(got - exact) <= form.k * 2.0**-24 * size + rounding).all()
    else:
        largest = np.maximum((np.abs(a)[:, :, None] * np.abs(b)[None]).max(1), np.abs(c))
        kept = 13 if BYTES[form.a] == 1 else 25
        assert (np.abs(got - exact) <= (form.k + 1) * largest * 2.0**-kept + 2 * rounding).all()


def test_without_checks() -> None:
    got, a, b, c = multiply(Form(128), checks=False)
    assert_array_equal(got, a @ b + c)
