"""Every form of the asynchronous instructions: ptxas takes it, and the emulator decodes it; and forms that neither has.

The instructions stand behind a false predicate: what they do is tested elsewhere.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest

import emulator

MBAR = "[%r1]"
TO, FROM = "[%r2 + 16]", "[%rd2]"


def module(forms: list[str]) -> str:
    body = "\n".join(f"  @%p1 {form};" for form in forms)
    return f"""
.version 8.8
.target sm_90a
.address_size 64
.visible .entry forms(.param .align 64 .b8 map[128]) .maxntid 128 .maxnreg 128 {{
  .reg .pred %p<4>;
  .reg .b16 %h<4>;
  .reg .b32 %r<8>;
  .reg .f32 %f<4>;
  .reg .b64 %rd<8>;
  .reg .f64 %d<4>;
  setp.ne.u32 %p1, 0, 0;
  setp.eq.u32 %p2, 0, 0;
  mov.b16 %h1, 1;
  mov.b32 %r1, 1024; mov.b32 %r2, 1024; mov.b32 %r3, 0; mov.b32 %r4, 0; mov.b32 %r5, 0; mov.b32 %r6, 0;
  mov.b64 %rd1, 0; mov.b64 %rd2, 0; mov.b64 %rd3, 0; mov.b64 %rd4, 0; mov.b64 %rd5, 0;
  mov.f32 %f1, 0f00000000; mov.f64 %d1, 0d0000000000000000;
{body}
  ret;
}}
"""


def each(*parts: str | list[str]) -> Iterator[str]:
    """All ways to choose from the lists, written one after the other."""
    for chosen in product(*([part] if isinstance(part, str) else part for part in parts)):
        yield "".join(chosen)


def cp_async() -> Iterator[str]:
    prefetch = ["", ".L2::64B", ".L2::128B", ".L2::256B"]
    yield from each("cp.async.ca.shared", ["", "::cta"], ".global", prefetch, f" {TO}, {FROM}, ", ["4", "8", "16"])
    yield from each(f"cp.async.ca.shared.global {TO}, {FROM}, ", ["4", "8", "16"], ", ", ["%r3", "0", "%p2", "4"])
    yield from each(f"cp.async.cg.shared.global {TO}, {FROM}, 16", ["", ", %r3", ", %p2"])
    yield from each("cp.async.cg.shared.global.L2::cache_hint", prefetch, f" {TO}, {FROM}, 16", ["", ", %r3"], ", %rd3")
    yield from ("cp.async.commit_group", "cp.async.wait_group 0", "cp.async.wait_group 7", "cp.async.wait_all")
    yield from each("cp.async.mbarrier.arrive", ["", ".noinc"], [".shared", ".shared::cta"], f".b64 {MBAR}")
    yield from each("cp.async.mbarrier.arrive", ["", ".noinc"], ".b64 [%rd2]")


def mbarrier() -> Iterator[str]:
    spaces = [".shared", ".shared::cta"]
    scopes = ["", ".release.cta", ".release.cluster", ".relaxed.cta", ".relaxed.cluster"]
    waits = ["", ".acquire.cta", ".acquire.cluster", ".relaxed.cta", ".relaxed.cluster"]
    yield from each("mbarrier.init", spaces, f".b64 {MBAR}, ", ["%r3", "12"])
    yield from each("mbarrier.inval", spaces, f".b64 {MBAR}")
    yield "mbarrier.init.b64 [%rd2], 1"
    for operation in ("arrive", "arrive_drop"):
        yield from each(f"mbarrier.{operation}", scopes, spaces, f".b64 %rd4, {MBAR}", ["", ", %r3", ", 2"])
        yield from each(f"mbarrier.{operation}", scopes[1::2], f".shared::cta.b64 _, {MBAR}", ["", ", 2"])
        yield from each(
            f"mbarrier.{operation}", ["", ".release.cluster"], f".shared::cluster.b64 _, {MBAR}", ["", ", 2"]
        )
        yield from each(f"mbarrier.{operation}.b64 %rd4, [%rd2]", ["", ", 3"])
        yield from each(f"mbarrier.{operation}.expect_tx", scopes, f".shared::cta.b64 %rd4, {MBAR}, ", ["%r3", "64"])
        yield f"mbarrier.{operation}.expect_tx.release.cluster.shared::cluster.b64 _, {MBAR}, 64"
        yield from each(f"mbarrier.{operation}.noComplete", ["", ".release.cta"], spaces, f".b64 %rd4, {MBAR}, 1")
    scopes = ["", ".relaxed.cta", ".relaxed.cluster"]
    for operation in ("expect_tx", "complete_tx"):
        yield from each(f"mbarrier.{operation}", scopes, [*spaces, ".shared::cluster"], f".b64 {MBAR}, %r3")
    yield from each("mbarrier.test_wait", waits, spaces, f".b64 %p3, {MBAR}, %rd4")
    yield from each("mbarrier.test_wait.parity", waits, spaces, f".b64 %p3, {MBAR}, ", ["%r3", "1"])
    yield from each("mbarrier.try_wait", waits, spaces, f".b64 %p3, {MBAR}, %rd4", ["", ", %r3", ", 1000"])
    yield from each("mbarrier.try_wait.parity", waits, spaces, f".b64 %p3, {MBAR}, %r3", ["", ", %r4"])
    yield "mbarrier.try_wait.b64 %p3, [%rd2], %rd4"
    yield "mbarrier.pending_count.b64 %r3, %rd4"


BULK_LOAD = ".mbarrier::complete_tx::bytes"


def bulk() -> Iterator[str]:
    for cache, policy in (("", ""), (".L2::cache_hint", ", %rd3")):
        operands = f"{TO}, {FROM}, %r3, {MBAR}"
        yield f"cp.async.bulk.shared::cluster.global{BULK_LOAD}{cache} {operands}{policy}"
        yield f"cp.async.bulk.shared::cta.global{BULK_LOAD}{cache} {operands}{policy}"
        yield f"cp.async.bulk.shared::cluster.global{BULK_LOAD}.multicast::cluster{cache} {operands}, %h1{policy}"
        yield f"cp.async.bulk.global.shared::cta.bulk_group{cache} {FROM}, {TO}, 64{policy}"
        yield f"cp.async.bulk.prefetch.L2.global{cache} {FROM}, %r3{policy}"
        yield f"cp.reduce.async.bulk.global.shared::cta.bulk_group{cache}.add.f32 {FROM}, {TO}, 64{policy}"
    yield f"cp.async.bulk.shared::cluster.shared::cta{BULK_LOAD} {TO}, [%r4], %r3, {MBAR}"
    remote = [
        "add.s32",
        "add.u32",
        "add.u64",
        "inc.u32",
        "dec.u32",
        "min.s32",
        "min.u32",
        "max.s32",
        "max.u32",
        "and.b32",
        "or.b32",
        "xor.b32",
    ]
    for operation in remote:
        yield f"cp.reduce.async.bulk.shared::cluster.shared::cta{BULK_LOAD}.{operation} {TO}, [%r4], %r3, {MBAR}"
    for operation in (
        *remote,
        "and.b64",
        "min.s64",
        "max.u64",
        "add.f64",
        "add.noftz.f16",
        "add.noftz.bf16",
        "min.f16",
        "max.bf16",
    ):
        yield f"cp.reduce.async.bulk.global.shared::cta.bulk_group.{operation} {FROM}, {TO}, 64"
    yield "cp.async.bulk.commit_group"
    yield from each("cp.async.bulk.wait_group", ["", ".read"], " ", ["0", "3"])


def tensor() -> Iterator[str]:
    for rank in range(1, 6):
        place = f"[%rd2, {{{', '.join(['%r3', '%r4', '-1', '7', '%r5'][:rank])}}}]"
        for mode, (cache, policy) in product(("", ".tile"), (("", ""), (".L2::cache_hint", ", %rd3"))):
            copy = f"cp.async.bulk.tensor.{rank}d"
            yield f"{copy}.shared::cluster.global{mode}{BULK_LOAD}{cache} {TO}, {place}, {MBAR}{policy}"
            yield f"{copy}.shared::cta.global{mode}{BULK_LOAD}{cache} {TO}, {place}, {MBAR}{policy}"
            many = f"{BULK_LOAD}.multicast::cluster{cache}"
            yield f"{copy}.shared::cluster.global{mode}{many} {TO}, {place}, {MBAR}, %h1{policy}"
            yield f"{copy}.global.shared::cta{mode}.bulk_group{cache} {place}, {TO}{policy}"
            yield f"cp.async.bulk.prefetch.tensor.{rank}d.L2.global{mode}{cache} {place}{policy}"
            for operation in ["add", "min", "max", "inc", "dec", "and", "or", "xor"]:
                reduce = f"cp.reduce.async.bulk.tensor.{rank}d.global.shared::cta.{operation}"
                yield f"{reduce}{mode}.bulk_group{cache} {place}, {TO}{policy}"


def tensormap() -> Iterator[str]:
    for space, address in ((".global", "[%rd2]"), (".shared::cta", "[%r2]"), ("", "[%rd2]")):
        replace = "tensormap.replace.tile."
        yield f"{replace}global_address{space}.b1024.b64 {address}, %rd3"
        yield f"{replace}rank{space}.b1024.b32 {address}, %r3"
        for field in ("box_dim", "global_dim", "element_stride"):
            yield f"{replace}{field}{space}.b1024.b32 {address}, 1, %r3"
        yield f"{replace}global_stride{space}.b1024.b64 {address}, 0, %rd3"
        for field in ("elemtype", "interleave_layout", "swizzle_mode", "fill_mode"):
            yield f"{replace}{field}{space}.b1024.b32 {address}, 1"
    for scope in ("cta", "cluster", "gpu", "sys"):
        copy = "tensormap.cp_fenceproxy.global.shared::cta.tensormap::generic.release"
        yield f"{copy}.{scope}.sync.aligned [%rd2], [%r2], 128"
        yield f"fence.proxy.tensormap::generic.release.{scope}"
        yield f"fence.proxy.tensormap::generic.acquire.{scope} [%rd2], 128"
    yield "prefetch.tensormap [%rd2]"
    yield "prefetch.param.tensormap [map]"


def others() -> Iterator[str]:
    yield from each("fence", ["", ".sc", ".acq_rel", ".acquire", ".release"], [".cta", ".cluster", ".gpu", ".sys"])
    yield from ("membar.cta", "membar.gl", "membar.sys", "fence.mbarrier_init.release.cluster")
    yield from each("fence.proxy.async", ["", ".global", ".shared::cta", ".shared::cluster"])
    yield "fence.proxy.alias"
    yield "fence.acquire.sync_restrict::shared::cluster.cluster"
    yield "fence.release.sync_restrict::shared::cta.cluster"
    yield "fence.proxy.async::generic.acquire.sync_restrict::shared::cluster.cluster"
    yield "fence.proxy.async::generic.release.sync_restrict::shared::cta.cluster"
    yield from each("barrier.cluster.arrive", ["", ".release", ".relaxed"], ["", ".aligned"])
    yield from each("barrier.cluster.wait", ["", ".acquire"], ["", ".aligned"])
    yield from (
        "mapa.shared::cluster.u32 %r3, %r2, %r4",
        "mapa.shared::cluster.u64 %rd3, %rd2, 0",
        "mapa.u64 %rd3, %rd2, %r4",
    )
    yield from ("getctarank.shared::cluster.u32 %r3, %r2", "getctarank.u64 %r3, %rd2")
    store = f"st.async.weak.shared::cluster{BULK_LOAD}"
    yield from each(store, ".", ["b32", "u32", "s32"], f" {TO}, %r3, {MBAR}")
    yield from (f"{store}.f32 {TO}, %f1, {MBAR}", f"{store}.f64 {TO}, %d1, {MBAR}", f"{store}.b64 {TO}, %rd3, {MBAR}")
    yield f"st.async{BULK_LOAD}.u32 [%rd2], %r3, [%rd3]"
    yield f"{store}.v2.b64 {TO}, {{%rd3, %rd4}}, {MBAR}"
    yield f"{store}.v2.b32 {TO}, {{%r3, %r4}}, {MBAR}"
    yield f"{store}.v4.f32 {TO}, {{%f1, %f1, %f1, %f1}}, {MBAR}"
    for operation in [
        "inc.u32",
        "dec.u32",
        "min.u32",
        "min.s32",
        "max.u32",
        "max.s32",
        "add.u32",
        "add.s32",
        "and.b32",
        "or.b32",
        "xor.b32",
    ]:
        yield f"red.async.relaxed.cluster.shared::cluster{BULK_LOAD}.{operation} {TO}, %r3, {MBAR}"
    yield f"red.async.relaxed.cluster.shared::cluster{BULK_LOAD}.add.u64 {TO}, %rd3, {MBAR}"
    yield from ("griddepcontrol.launch_dependents", "griddepcontrol.wait")
    yield from ("setmaxnreg.dec.sync.aligned.u32 24", "setmaxnreg.inc.sync.aligned.u32 240")
    yield from each("prefetch", ["", ".global", ".local"], [".L1", ".L2"], " [%rd2]")
    yield from each("prefetch.global.L2::evict_", ["last", "normal"], " [%rd2]")
    yield "prefetchu.L1 [%rd2]"
    yield from each("discard", ["", ".global"], ".L2 [%rd2], 128")
    yield from each("applypriority", ["", ".global"], ".L2::evict_normal [%rd2], 128")
    first = ["evict_last", "evict_normal", "evict_first", "evict_unchanged"]
    yield from each("createpolicy.fractional.L2::", first, ["", ".L2::evict_unchanged"], ".b64 %rd3", ["", ", 0.5"])
    yield from each(
        "createpolicy.range", ["", ".global"], ".L2::evict_last.L2::evict_first.b64 %rd3, [%rd2], 4096, %r3"
    )
    yield "createpolicy.cvt.L2.b64 %rd3, %rd4"


FAMILIES = [cp_async, mbarrier, bulk, tensor, tensormap, others]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
def test_decodes(family: type) -> None:
    emulator.Gpu("H100").load(module(list(family())))["forms"](1, 128, bytes(128))


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
def test_ptxas_agrees(family: type, tmp_path: Path) -> None:
    ptxas = shutil.which("ptxas") or (emulator.nvcc() and str(emulator.nvcc().parent / "ptxas"))
    if not ptxas or not Path(ptxas).exists():
        pytest.skip("no ptxas")
    source = tmp_path / "forms.ptx"
    source.write_text(module(list(family())))
    done = subprocess.run([ptxas, "-arch=sm_90a", source, "-o", "/dev/null"], capture_output=True, text=True)
    lines = source.read_text().splitlines()
    errors = [
        f"{error} {lines[int(error.split(',')[1].split()[1]) - 1]}"
        for error in done.stderr.splitlines()
        if ", line " in error
    ]
    assert not errors, "\n".join(errors)


LOAD_3D = f"{BULK_LOAD} [%r2], [%rd2, {{1, 1, 1}}], [%r1], {{%h1}}"
LOAD_ROWS = f"{BULK_LOAD} [%r2], [%rd2, {{1, 1, 1, 1, 1}}], [%r1]"


@pytest.mark.parametrize(
    ("form", "kind"),
    [
        ("cp.async.ca.shared.global [%r2], [%rd2], 12", "unknown_instruction"),
        ("cp.async.cg.shared.global [%r2], [%rd2], 8", "unknown_instruction"),
        ("cp.async.ca.shared.global.L2::512B [%r2], [%rd2], 4", "unknown_instruction"),
        ("cp.async.wait_group %r3", "unknown_instruction"),
        ("mbarrier.arrive.acquire.cta.shared.b64 %rd4, [%r1]", "unknown_instruction"),
        ("mbarrier.test_wait.shared.b32 %p3, [%r1], %rd4", "unknown_instruction"),
        ("mbarrier.flip.shared.b64 [%r1]", "unknown_instruction"),
        ("cp.async.bulk.global.global.bulk_group [%rd2], [%rd2], 16", "unknown_instruction"),
        ("cp.async.bulk.global.shared::cta.bulk_group.cp_mask [%rd2], [%r2], 16, %h1", "unsupported"),
        ("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.b32 [%rd2], [%r2], 16", "unknown_instruction"),
        ("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f16 [%rd2], [%r2], 16", "unknown_instruction"),
        (f"cp.async.bulk.tensor.3d.shared::cluster.global.im2col{LOAD_3D}", "unsupported"),
        (f"cp.async.bulk.tensor.2d.shared::cluster.global.tile::gather4{LOAD_ROWS}", "unsupported"),
        (f"cp.async.bulk.tensor.2d.shared::cta.global{BULK_LOAD} [%r2], [%rd2, {{1}}], [%r1]", "unknown_instruction"),
        ("tensormap.replace.tile.colour.global.b1024.b32 [%rd2], 1", "unknown_instruction"),
        ("fence.proxy.texture", "unknown_instruction"),
        ("fence.acq_rel.warp", "unknown_instruction"),
        ("barrier.cluster.arrive.acquire", "unknown_instruction"),
        (f"st.async.weak.global{BULK_LOAD}.b32 [%rd2], %r3, [%r1]", "unsupported"),
        ("setmaxnreg.inc.sync.aligned.u32 28", "unknown_instruction"),
        ("setmaxnreg.dec.sync.aligned.u32 16", "unknown_instruction"),
        ("setmaxnreg.dec.sync.aligned.u32 200", "unknown_instruction"),
        ("createpolicy.fractional.L3::evict_last.b64 %rd3", "unknown_instruction"),
        ("prefetch.global.L3 [%rd2]", "unknown_instruction"),
    ],
)  # fmt: skip
def test_refused(form: str, kind: str) -> None:
    with pytest.raises(emulator.Fault) as caught:
        emulator.Gpu("H100").load(module([form]))["forms"](1, 128, bytes(128))
    assert caught.value.kind == kind
    assert form.split()[0].split(".")[0] in str(caught.value)
