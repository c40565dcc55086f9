"""The kernels of soft_dispatch and soft_combine: every engine and shape of block, repeatable bits, and memory traffic
with nothing wasted."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

import emulator
import moe_ext
from tests.ops.test_large import far_apart
from tests.ops.test_soft_moe import Plain
from tests.support import backends, virtual
from tests.support.backends import Backend
from tests.support.tolerance import assert_same_bits
from tests.support.truth import check_against_truth

backend = Backend("virtual:any")
put = backend.put
raw = torch.ops.moe_ext
pytestmark = pytest.mark.virtual
INF, NAN = float("inf"), float("nan")
F32, BF16, F16, F64 = torch.float32, torch.bfloat16, torch.float16, torch.float64


def plain(values: Tensor, logits: Tensor, token_mask: Tensor | None = None, *, dispatch: bool) -> Tensor:
    mixed: Tensor = Plain.apply(values, logits, token_mask, dispatch)
    return mixed


def under_test(values: Tensor, logits: Tensor, token_mask: Tensor | None = None, *, dispatch: bool) -> Tensor:
    return (moe_ext.soft_dispatch if dispatch else moe_ext.soft_combine)(values, logits, token_mask)


def draw(
    batch: int, num_tokens: int, num_slots: int, width: int, dtype: torch.dtype, logits_dtype: torch.dtype,
    *, dispatch: bool, masked: bool = False, seed: int = 0,
) -> dict[str, Tensor]:  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(batch, num_tokens if dispatch else num_slots, width, generator=generator)
    logits = torch.randn(batch, num_tokens, num_slots, generator=generator)
    tensors = {"values": values.to(dtype), "logits": logits.to(logits_dtype)}
    if masked:
        mask = torch.rand(batch, num_tokens, generator=generator) > 0.3
        mask[-1] = batch == 1
        tensors["token_mask"] = mask
    return tensors


def everything(tensors: dict[str, Tensor], *, dispatch: bool) -> tuple[Tensor, ...]:
    """The result, statistics, and both gradients, of given tensors on the virtual GPU."""
    values, logits, mask = tensors["values"], tensors["logits"], tensors.get("token_mask")
    mixed, statistics = raw.soft_mix(values, logits, mask, dispatch)
    grad = put(torch.randn(mixed.shape, generator=torch.Generator().manual_seed(1)).to(mixed.dtype))
    return (
        mixed,
        statistics,
        *raw.soft_mix_backward(grad, values, logits, mask, mixed, statistics, dispatch, True, True),
    )


def blocks_of(gpu: emulator.Gpu) -> list[str]:
    """The shapes of blocks on tensor cores, as "128x256"; "simt" for products without."""
    found = []
    for launch in gpu.launches:
        name = launch.kernel
        if "Shape<" in name:
            found.append("x".join(name.partition("Shape<")[2].split(", ")[:2]))
        elif "simt::" in name:
            found.append("simt")
    return found


# Tokens, slots, width: one block and several, multiples of nothing, rows that are in no pieces of 16 bytes.
SIZES = ((1, 1, 8), (66, 36, 136), (40, 70, 24), (65, 37, 72), (7, 9, 5))


@pytest.mark.parametrize("dispatch", [True, False], ids=["dispatch", "combine"])
@pytest.mark.parametrize(
    ("dtype", "logits_dtype"),
    [(BF16, F32), (BF16, BF16), (BF16, F16), (F16, F32), (F16, BF16), (F32, F32), (F32, F16), (F64, F64)],
    ids=str,
)
def test_against_the_truth(dtype: torch.dtype, logits_dtype: torch.dtype, dispatch: bool) -> None:
    for number, sizes in enumerate(SIZES):
        chip = backends.CHIPS[number % len(backends.CHIPS)]
        with virtual.ops_on(chip, **backends.behaviour(f"{sizes} {dtype} {dispatch}")):
            check_against_truth(
                under_test, plain,
                lambda seed, sizes=sizes: draw(
                    2, *sizes, dtype, logits_dtype, dispatch=dispatch, masked=sizes[0] % 2 == 0, seed=seed
                ),
                backend=backend, name=str(sizes), dispatch=dispatch,
            )  # fmt: skip


@pytest.mark.parametrize("dispatch", [True, False], ids=["dispatch", "combine"])
@pytest.mark.parametrize(
    ("chip", "num_slots", "dtype", "logits_dtype"), [("A30", 35, BF16, F32), ("L4", 72, F16, BF16)], ids=str
)
def test_large_blocks(
    chip: str, num_slots: int, dtype: torch.dtype, logits_dtype: torch.dtype, dispatch: bool
) -> None:  # fmt: skip
    """With a sequence for each multiprocessor blocks are large. A sequence alone gets small ones, and the same bits."""
    batch = emulator.chip(chip).multiprocessors
    tensors = draw(batch, 67, num_slots, 136, dtype, logits_dtype, dispatch=dispatch, masked=True)
    with virtual.ops_on(chip, **backends.behaviour(f"{dtype} {dispatch}")) as gpu:
        check_against_truth(under_test, plain, tensors, backend=backend, dispatch=dispatch)
        found = blocks_of(gpu)
        assert found[-1] == "128x128", found
        # Rows of the results are slots in one product and tokens in the other.
        assert "128x256" in found, found
        assert ("64x128" in found) == (num_slots <= 64), found
        many = everything(put(tensors), dispatch=dispatch)
        for index in (0, batch - 1):
            gpu.clear_launches()
            one = everything(put({k: v[index : index + 1] for k, v in tensors.items()}), dispatch=dispatch)
            assert set(blocks_of(gpu)) == {"64x128"}
            assert torch.equal(many[0][index], one[0][0])
            assert torch.equal(many[1][:, index], one[1][:, 0])


@pytest.mark.parametrize("dispatch", [True, False], ids=["dispatch", "combine"])
@pytest.mark.parametrize("dtype", [BF16, F32, F64], ids=str)
def test_the_same_bits_every_time(dtype: torch.dtype, dispatch: bool) -> None:
    tensors = draw(2, 70, 68, 40, dtype, dtype, dispatch=dispatch, masked=True)
    results = []
    for chip, seed, completion in (("sm_80", 0, "random"), ("sm_89", 1, "latest"), ("sm_90a", 2, "lifo")):
        with virtual.ops_on(chip, seed=seed, completion=completion):
            results.append([result.clone() for result in everything(put(tensors), dispatch=dispatch)])
    for result in results[1:]:
        for number, (first, again) in enumerate(zip(results[0], result, strict=True)):
            assert_same_bits(again, first, f"result {number}")


@pytest.mark.parametrize("dispatch", [True, False], ids=["dispatch", "combine"])
@pytest.mark.parametrize("dtype", [BF16, F32, F64], ids=str)
def test_strides(dtype: torch.dtype, dispatch: bool) -> None:
    """Rows that stand apart, aligned and not; sequences in any order; one gradient for all."""
    plain_tensors = draw(3, 34, 36, 16, dtype, F32 if dtype != F64 else F64, dispatch=dispatch, masked=True)

    def apart(tensor: Tensor, left: int, right: int) -> Tensor:
        padded = torch.full((*tensor.shape[:-1], left + tensor.shape[-1] + right), NAN, dtype=tensor.dtype)
        inner = padded[..., left : left + tensor.shape[-1]]
        return inner.copy_(tensor)

    layouts = [
        {"values": apart(plain_tensors["values"], 8, 8), "logits": apart(plain_tensors["logits"], 4, 8)},
        {"values": apart(plain_tensors["values"], 1, 2), "logits": apart(plain_tensors["logits"], 1, 2)},
        {name: plain_tensors[name].transpose(0, 1).contiguous().transpose(0, 1) for name in ("values", "logits")},
        {name: plain_tensors[name].mT.contiguous().mT for name in ("values", "logits")},
    ]
    with virtual.ops_on("sm_80", **backends.behaviour(str(dtype))) as gpu:
        first = everything(put(plain_tensors), dispatch=dispatch)
        engines = blocks_of(gpu)
        for number, layout in enumerate(layouts):
            gpu.clear_launches()
            results = everything(put(plain_tensors | layout), dispatch=dispatch)
            assert (blocks_of(gpu) == engines) == (number != 1 or dtype != BF16)
            for got, want in zip(results, first, strict=True):
                if number != 1 or dtype != BF16:
                    assert torch.equal(got, want), number
                else:
                    rounding = 4 * torch.finfo(dtype).eps
                    torch.testing.assert_close(got, want, rtol=rounding, atol=rounding)
        values, logits = put((plain_tensors["values"], plain_tensors["logits"]))
        mixed, statistics = raw.soft_mix(values, logits, None, dispatch)
        one = put(torch.ones((), dtype=dtype))
        spread, whole = one.expand(mixed.shape), put(torch.ones(mixed.shape, dtype=dtype))
        for a, b in zip(
            *(
                raw.soft_mix_backward(g, values, logits, None, mixed, statistics, dispatch, True, True)
                for g in (spread, whole)
            ),
            strict=True,
        ):
            torch.testing.assert_close(a, b, rtol=1e-2 if dtype == BF16 else 1e-5, atol=1e-2 if dtype == BF16 else 1e-5)


@pytest.mark.parametrize("dispatch", [True, False], ids=["dispatch", "combine"])
@pytest.mark.parametrize("dtype", [BF16, F32], ids=str)
def test_offsets_past_2_31(dtype: torch.dtype, dispatch: bool) -> None:
    tensors = draw(2, 6, 8, 16, dtype, F32, dispatch=dispatch)
    with virtual.ops_on("sm_80", **backends.behaviour(str(dtype))):
        near = everything(put(tensors), dispatch=dispatch)
        for name, dim in itertools.product(tensors, (0, 1)):
            far = put(tensors) | {name: far_apart(backend, put(tensors[name]), dim)}
            for got, want in zip(everything(far, dispatch=dispatch), near, strict=True):
                assert torch.equal(got, want), (name, dim)


@pytest.mark.parametrize("dispatch", [True, False], ids=["dispatch", "combine"])
@pytest.mark.parametrize("dtype", [BF16, F32, F64], ids=str)
def test_what_is_not_finite(dtype: torch.dtype, dispatch: bool) -> None:
    """Logits of tokens that are left out may be anything. Elsewhere the softmax of one result is NaN, or a sharp one,
    and its neighbours notice nothing."""
    logits_dtype = F32 if dtype != F64 else F64
    tensors = draw(1, 37, 40, 16, dtype, logits_dtype, dispatch=dispatch, masked=True)
    mask, logits = tensors["token_mask"], tensors["logits"]
    mask[:, :6] = True
    results = (lambda i: (0, slice(None), i)) if dispatch else (lambda i: (0, i))
    with virtual.ops_on("sm_90a", **backends.behaviour(str(dtype))):
        expected = [result.clone() for result in everything(put(tensors), dispatch=dispatch)]
        hidden = (~mask[0]).nonzero()[:, 0]
        logits[0, hidden] = torch.tensor([NAN, INF, -INF, 3e38]).to(logits_dtype).repeat(10)
        for got, want in zip(everything(put(tensors), dispatch=dispatch), expected, strict=True):
            assert torch.equal(got, want)
        logits[results(0)] = -INF
        logits[results(1)] *= NAN
        logits[0, 2, 3] = INF  # of result 3 in dispatch, 2 in combine
        logits[results(4)] = -INF
        logits[0, 5 if dispatch else 4, 4 if dispatch else 5] = 80.0  # the only one of result 4
        mixed, _, _, grad_logits = everything(put(tensors), dispatch=dispatch)
        broken = {0, 1, 3 if dispatch else 2}
        for result in range(mixed.shape[1]):
            if result in broken:
                assert mixed[0, result].isnan().all()
            elif result == 4:
                assert torch.equal(mixed[0, 4], put(tensors["values"])[0, 5])
            else:
                assert torch.equal(mixed[0, result], expected[0][0, result])
                assert torch.equal(grad_logits[results(result)], expected[3][results(result)])
        assert not grad_logits[0, hidden].any()


@pytest.mark.parametrize("dispatch", [True, False], ids=["dispatch", "combine"])
@pytest.mark.parametrize("dtype", [BF16, F32, F64], ids=str)
def test_nothing_to_add(dtype: torch.dtype, dispatch: bool) -> None:
    """No sequences, tokens, slots, width; nobody there. Nothing is launched for nothing."""
    for sizes in ((0, 3, 4, 8), (2, 0, 4, 8), (2, 3, 0, 8), (2, 3, 4, 0), (2, 3, 4, 8)):
        tensors = draw(*sizes, dtype, dtype, dispatch=dispatch)
        tensors["token_mask"] = torch.zeros(sizes[:2], dtype=torch.bool)
        with virtual.ops_on("sm_80") as gpu:
            for result in everything(put(tensors), dispatch=dispatch):
                assert not result.any()
            assert sizes[0] or not gpu.launches
            values, logits = put((tensors["values"], tensors["logits"]))
            mixed, statistics = raw.soft_mix(values, logits, None, dispatch)
            gpu.clear_launches()
            for wanted in itertools.product((False, True), repeat=2):
                grads = raw.soft_mix_backward(mixed, values, logits, None, mixed, statistics, dispatch, *wanted)
                assert [grad.shape for grad in grads] == [
                    like.shape if want else (0,) for like, want in zip((values, logits), wanted, strict=True)
                ]


@pytest.mark.parametrize("dispatch", [True, False], ids=["dispatch", "combine"])
@pytest.mark.parametrize(("dtype", "logits_dtype"), [(BF16, F32), (BF16, BF16), (F32, F32), (F64, F64)], ids=str)
def test_memory_traffic(gpu: emulator.Gpu, dtype: torch.dtype, logits_dtype: torch.dtype, dispatch: bool) -> None:
    """No bank conflicts, and of whole sectors: what is asked for is used."""
    gpu.counters = True
    everything(put(draw(2, 128, 64, 128, dtype, logits_dtype, dispatch=dispatch)), dispatch=dispatch)
    assert len(gpu.launches) == 5
    for launch in gpu.launches:
        counters = launch.counters
        assert counters.shared_wavefronts == counters.shared_wavefronts_ideal, launch.kernel
        assert counters.global_sectors <= counters.global_sectors_ideal, launch.kernel
    statistics, product, gradient, dots, logits = (launch.counters for launch in gpu.launches)
    matrix, rows, columns = (n // 32 for n in (128 * 64, 128 * 128, 64 * 128))
    matrix, rows, columns = 2 * matrix * logits_dtype.itemsize, 2 * rows * dtype.itemsize, 2 * columns * dtype.itemsize
    number = 2 * (64 if dispatch else 128) * (8 if dtype == F64 else 4) // 32  # one for each result
    results, values = (columns, rows) if dispatch else (rows, columns)
    assert statistics.distinct_sectors_read == matrix
    assert statistics.distinct_sectors_written == 2 * number
    assert product.distinct_sectors_read == matrix + 2 * number + values
    assert product.distinct_sectors_written == results
    assert gradient.distinct_sectors_read == matrix + 2 * number + results
    assert gradient.distinct_sectors_written == values
    assert dots.distinct_sectors_read == 2 * results
    assert dots.distinct_sectors_written == number
    assert logits.distinct_sectors_read == matrix + 3 * number + rows + columns
    assert logits.distinct_sectors_written == matrix
