"""Gates on every compiled kernel, for every architecture: what a GPU would run, looked at without one."""

import pytest

from tests.cuda.objects import Kernel, kernels


def described(found: list[Kernel]) -> str:
    return "\n".join(
        f"{kernel}: {kernel.registers} registers, stack {kernel.stack}, local {kernel.local}" for kernel in found
    )


def of_family(family: str) -> list[Kernel]:
    found = [kernel for kernel in kernels() if kernel.name.startswith(f"moe::cuda::{family}::")]
    assert found, f"no {family} kernels"
    return found


def test_nothing_spills() -> None:
    """No register lives in memory, and no array is indexed by a number that is known at run time only."""
    spilled = [kernel for kernel in kernels() if kernel.local or kernel.count("LDL", "STL")]
    assert not spilled, described(spilled)


def test_products_run_on_tensor_cores() -> None:
    for kernel in of_family("mma"):
        assert kernel.count("HMMA") >= 8, kernel
    for kernel in of_family("wgmma"):
        assert kernel.arch == "sm_90a", kernel
        assert kernel.count("HGMMA") >= 1, kernel


def test_operands_arrive_by_asynchronous_copies() -> None:
    for kernel in of_family("mma"):
        assert kernel.count("LDGSTS") >= 4, kernel
        assert kernel.count("LDSM") >= 2 or "float" in kernel.name, kernel
    for kernel in of_family("wgmma"):
        assert kernel.count("UTMALDG", "LDGSTS") >= 1, kernel


def test_every_architecture_has_every_kernel() -> None:
    by_arch: dict[str, set[str]] = {}
    for kernel in kernels():
        if not kernel.name.startswith("moe::cuda::wgmma::"):
            by_arch.setdefault(kernel.arch, set()).add(kernel.name)
    assert len(set(map(frozenset, by_arch.values()))) == 1, {arch: len(names) for arch, names in by_arch.items()}


@pytest.mark.parametrize("family", ["mma", "wgmma", "simt"])
def test_registers_leave_room_for_the_block(family: str) -> None:
    """A multiprocessor has 65536: blocks of 256 threads fit, and of 384 for wgmma, whose warps then share them out."""
    for kernel in of_family(family):
        assert kernel.registers <= (168 if family == "wgmma" else 255), kernel


def test_nothing_rounds_doubles_in_the_others_kernels() -> None:
    """No kernel for float or 16 bits computes in double by an oversight: one literal without an f is enough."""
    for kernel in kernels():
        if "double" not in kernel.name:
            assert not kernel.count("DADD", "DMUL", "DFMA"), kernel
