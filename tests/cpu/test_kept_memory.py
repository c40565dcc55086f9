"""Memory of large weight gradients, which serves the next one when torch frees it (csrc/cpu/kept_memory.h)."""

import copy
import io
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import moe_ext
from moe_ext import reference
from tests.support.cases import Case, Shape, half_empty
from tests.support.inputs import make_inputs
from tests.support.tolerance import assert_same_bits
from tests.support.truth import check_against_truth, run_with_gradients

RELEASE = tuple(int(number) for number in torch.__version__.split(".")[:2])
pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is kept on Linux only"),
    pytest.mark.skipif(RELEASE < (2, 11), reason="torch takes memory of others from 2.11 on"),
    pytest.mark.skipif(os.environ.get("MOE_EXT_KEPT_MEMORY") == "0", reason="switched off by MOE_EXT_KEPT_MEMORY"),
]

MIB = 2**20
# Gradients of 16 and 8 MiB in float32, 8 and 4 MiB in bfloat16.
LARGE = Case("large", Shape(40, 1024, 256, 8, 2), half_empty)
WEIGHTS = ("w_gate_up", "w_down")


@pytest.fixture(autouse=True)
def _nothing_kept() -> None:
    moe_ext.release_memory()


def weight_gradients(dtype: torch.dtype = torch.float32, seed: int = 0) -> dict[str, Tensor]:
    tensors = make_inputs(LARGE, dtype, seed=seed).tensors()
    named = run_with_gradients(moe_ext.fused_experts, tensors, gradients_of=WEIGHTS, seed=seed)
    return {name: named[f"grad_{name}"] for name in WEIGHTS}


def gradient_of(mib: int) -> Tensor:
    """A weight gradient of so many MiB, by an op that keeps no workspace."""
    rows, grad_out = torch.randn(3, 1024), torch.randn(3, 256)
    return torch.ops.moe_ext.grouped_gemm_wgrad(
        rows, grad_out, torch.full((mib + 1,), 3, dtype=torch.int32), None, False
    )


def addresses(gradients: dict[str, Tensor]) -> dict[str, int]:
    return {name: gradient.data_ptr() for name, gradient in gradients.items()}


def is_kept(tensor: Tensor) -> bool:
    """Whether the memory isn't torch's own."""
    return not tensor.untyped_storage().resizable()


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs code in a process of its own, after what it may take for granted."""
    program = f"import os\nimport torch\nimport moe_ext\nfrom tests.cpu.test_kept_memory import *\n{code}"
    return subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def printed(code: str, **environment: str) -> str:
    done = python(code, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def resident_bytes() -> int:
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))


def test_the_next_backward_gets_the_same_memory() -> None:
    first = weight_gradients()
    assert all(is_kept(gradient) for gradient in first.values())
    before = addresses(first)
    del first
    assert addresses(weight_gradients(seed=1)) == before


def test_memory_is_aligned_to_huge_pages() -> None:
    assert gradient_of(5).data_ptr() % (2 * MIB) == 0


def test_gradients_in_use_never_share() -> None:
    first = weight_gradients()
    kept = {name: gradient.clone() for name, gradient in first.items()}
    second = weight_gradients(seed=1)
    assert not set(addresses(first).values()) & set(addresses(second).values())
    for name in WEIGHTS:
        assert_same_bits(first[name], kept[name], name)


def test_a_view_keeps_the_memory() -> None:
    gradients = weight_gradients()
    before = addresses(gradients)
    view = gradients["w_down"].mT[-1, 5:]
    expected = view.clone()
    del gradients
    after = weight_gradients(seed=1)
    assert after["w_gate_up"].data_ptr() == before["w_gate_up"]
    assert after["w_down"].data_ptr() != before["w_down"]
    assert_same_bits(view, expected, "view")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_whatever_was_there_is_overwritten(dtype: torch.dtype) -> None:
    """Also where an expert has no token."""
    expected = {name: gradient.clone() for name, gradient in weight_gradients(dtype).items()}
    dirty = weight_gradients(dtype)
    for gradient in dirty.values():
        gradient.fill_(float("nan"))
    before = addresses(dirty)
    del dirty, gradient
    again = weight_gradients(dtype)
    assert addresses(again) == before
    idle = torch.ones(LARGE.shape.num_experts, dtype=torch.bool)
    idle[LARGE.topk_ids(0)[LARGE.topk_ids(0) >= 0].long().unique()] = False
    assert idle.any()
    assert not idle.all()
    for name in WEIGHTS:
        assert_same_bits(again[name], expected[name], name)
        assert (again[name][idle] == 0).all()


@pytest.mark.parametrize("transposed", [False, True])
def test_gradients_are_right_in_used_memory(transposed: bool) -> None:
    for gradient in weight_gradients().values():
        gradient.fill_(float("nan"))
    del gradient
    tensors = make_inputs(LARGE, transposed=transposed).tensors()
    check_against_truth(moe_ext.fused_experts, reference.fused_experts, tensors, transposed=transposed)


def test_grouped_gemm_too() -> None:
    weight = torch.randn(8, 256, 1024, requires_grad=True)
    rows, offsets = torch.randn(24, 1024), torch.arange(0, 27, 3, dtype=torch.int32)
    before = []
    for _ in range(2):
        (gradient,) = torch.autograd.grad(moe_ext.grouped_gemm(rows, weight, offsets).sum(), weight)
        assert is_kept(gradient)
        before.append(gradient.data_ptr())
        del gradient
    assert before[0] == before[1]


def test_backward_into_grad() -> None:
    """.grad is the memory itself, not a copy of it, and what is added to it comes from memory used again."""
    weight = torch.randn(8, 256, 1024, requires_grad=True)
    rows, offsets = torch.randn(24, 1024), torch.arange(0, 27, 3, dtype=torch.int32)
    moe_ext.grouped_gemm(rows, weight, offsets).sum().backward()
    assert weight.grad is not None
    assert is_kept(weight.grad)
    once = weight.grad.clone()
    for _ in range(2):
        moe_ext.grouped_gemm(rows, weight, offsets).sum().backward()
    assert moe_ext.release_memory() == 8 * MIB
    torch.testing.assert_close(weight.grad, 3 * once)


def test_small_gradients_are_ordinary() -> None:
    assert not is_kept(gradient_of(3))
    assert is_kept(gradient_of(4))


def test_a_block_may_be_an_eighth_too_large() -> None:
    for size, fits in ((16, True), (14, False)):
        larger = gradient_of(18).data_ptr()
        assert (gradient_of(size).data_ptr() == larger) == fits
        moe_ext.release_memory()


def test_release_memory() -> None:
    gradient = gradient_of(64)
    assert moe_ext.release_memory() == 0
    del gradient
    before = resident_bytes()
    assert moe_ext.release_memory() == 64 * MIB
    assert before - resident_bytes() > 60 * MIB
    assert moe_ext.release_memory() == 0


def test_release_memory_takes_the_workspace_too() -> None:
    gradients = weight_gradients()
    assert 0 < moe_ext.release_memory() < 8 * MIB
    assert moe_ext.release_memory() == 0
    del gradients
    assert moe_ext.release_memory() == 24 * MIB


def test_threads() -> None:
    """Each sees its own results, whoever had the memory before and whichever thread freed it."""
    expected = [{n: g.clone() for n, g in weight_gradients(seed=seed).items()} for seed in range(4)]
    wrong: list[int] = []
    handed_on: list[dict[str, Tensor]] = []

    def work(seed: int) -> None:
        for _ in range(8):
            gradients = weight_gradients(seed=seed)
            if not all(torch.equal(gradients[name], expected[seed][name]) for name in WEIGHTS):
                wrong.append(seed)
            handed_on.append(gradients)
            if len(handed_on) > 3:
                handed_on.pop(0)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


COPIES: dict[str, Callable[[Tensor], Tensor]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda tensor: pickle.loads(pickle.dumps(tensor)),
    "share_memory_": lambda tensor: tensor.share_memory_(),
    "numpy": lambda tensor: torch.from_numpy(tensor.numpy()),
    "dlpack": torch.from_dlpack,
    "set_": lambda tensor: torch.empty(0).set_(tensor),
}


@pytest.mark.parametrize("name", COPIES)
def test_copies_and_views_of_other_libraries(name: str) -> None:
    gradient = gradient_of(4)
    expected = gradient.clone()
    result = COPIES[name](gradient)
    del gradient
    dirty = gradient_of(4).fill_(float("nan"))
    assert_same_bits(result, expected, name)
    del dirty


def test_save_and_load() -> None:
    gradient, file = gradient_of(4), io.BytesIO()
    torch.save(gradient, file)
    file.seek(0)
    assert_same_bits(torch.load(file), gradient, "loaded")


def test_memory_shared_with_other_processes_is_not_used_again() -> None:
    gradient = gradient_of(4).share_memory_()
    address = gradient.data_ptr()
    del gradient
    assert gradient_of(4).data_ptr() != address


def test_what_such_a_gradient_cannot_do() -> None:
    """torch doesn't resize a storage whose memory isn't its own; to free it, drop the tensor."""
    gradient = gradient_of(4)
    for resize in (lambda: gradient.untyped_storage().resize_(0), lambda: gradient.resize_(2 * gradient.numel())):
        with pytest.raises(RuntimeError, match="not resizable"):
            resize()
    assert gradient.resize_(7).shape == (7,)


def test_limit_of_zero_switches_it_off() -> None:
    code = "g = gradient_of(8); kept = is_kept(g); del g; print(kept, moe_ext.release_memory())"
    assert printed(code, MOE_EXT_KEPT_MEMORY="0") == "False 0"
    assert printed(code, MOE_EXT_KEPT_MEMORY="") == f"True {8 * MIB}"


def test_the_oldest_goes_when_the_limit_is_reached() -> None:
    code = """
sizes = (8, 6, 4)
gradients = [gradient_of(size) for size in sizes]
old = [gradient.data_ptr() for gradient in gradients]
while gradients:
    gradients.pop(0)
again = [gradient_of(size) for size in sizes[1:]]
print([gradient.data_ptr() for gradient in again] == old[1:], moe_ext.release_memory())
del again
print(moe_ext.release_memory())
"""
    assert printed(code, MOE_EXT_KEPT_MEMORY=str(17 * MIB)) == f"True 0\n{10 * MIB}"


def test_a_block_beyond_the_limit_is_not_kept() -> None:
    code = "g = gradient_of(4); h = gradient_of(8); print(is_kept(h)); del g, h; print(moe_ext.release_memory())"
    assert printed(code, MOE_EXT_KEPT_MEMORY=str(6 * MIB)) == f"False\n{4 * MIB}"


@pytest.mark.parametrize("value", ["2GB", "-1", "1e9", "99999999999999999999"])
def test_a_bad_limit_is_a_clear_import_error(value: str) -> None:
    done = python("", MOE_EXT_KEPT_MEMORY=value)
    assert done.returncode == 1
    assert "ImportError: " in done.stderr.strip().splitlines()[-1]
    assert f"MOE_EXT_KEPT_MEMORY is '{value}', but must be a number of bytes" in done.stderr


def test_fork() -> None:
    """Parent and child each go on, and neither keeps memory whose pages the other may still share."""
    code = """
torch.set_num_threads(1)
expected = {name: gradient.clone() for name, gradient in weight_gradients().items()}
held = gradient_of(4)
value = held.clone()

def go_on():
    global held
    assert torch.equal(held, value)
    del held
    moe_ext.release_memory()  # the workspace
    assert moe_ext.release_memory() == 0
    for _ in range(2):
        gradients = weight_gradients()
        assert all(torch.equal(gradients[name], expected[name]) for name in WEIGHTS)
        before = addresses(gradients)
        del gradients
    assert addresses(weight_gradients()) == before
    print("went on", flush=True)

child = os.fork()
if child == 0:
    go_on()
    os._exit(0)
go_on()
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""
    assert printed(code) == "went on\nwent on"


def test_the_process_ends_while_gradients_live() -> None:
    code = """
import atexit, sys
held = weight_gradients()
held["cycle"] = held
sys.modules["somewhere"] = held
atexit.register(lambda: print(float(held["w_down"].sum()) != 0, flush=True))
"""
    assert printed(code) == "True"
