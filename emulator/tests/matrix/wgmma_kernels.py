"""A kernel around wgmma: copies an image into shared memory, multiplies once, stores the accumulators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

import emulator
from emulator.tests.matrix import formats, fragments, ptx_text
from emulator.tests.matrix.formats import BYTES

__all__ = ["SHARED", "Form", "copy_image", "run", "source"]

SHARED = 128 * 1024  # bytes that the kernel asks for


class Form(NamedTuple):
    """One wgmma.mma_async."""

    n: int
    a: str = "bf16"
    b: str = "bf16"
    d: str = "f32"
    registers: bool = False  # A's fragments in registers
    a_k_major: bool = True
    b_k_major: bool = True
    scale_a: int = 1
    scale_b: int = 1
    saturate: bool = False

    @property
    def k(self) -> int:
        return 32 // BYTES[self.a]

    @property
    def d_registers(self) -> int:
        return self.n * BYTES[self.d] // 8

    @property
    def name(self) -> str:
        parts = [f"n{self.n}", self.d, self.a, self.b, "registers" if self.registers else "memory"]
        parts += ["k" if self.a_k_major else "m", "k" if self.b_k_major else "n"]
        parts += [f"{x}".replace("-", "minus") for x in (self.scale_a, self.scale_b)]
        return "_".join(parts) + ("_satfinite" if self.saturate else "")

    @property
    def opcode(self) -> str:
        satfinite = ".satfinite" if self.saturate else ""
        return f"wgmma.mma_async.sync.aligned.m64n{self.n}k{self.k}{satfinite}.{self.d}.{self.a}.{self.b}"

    def text(self, a: str, b: str, scale: str, d: str = "") -> str:
        """The instruction on given operands; D is %d0 … unless told."""
        operands = [d or ptx_text.names("d", self.d_registers), a, b, scale]
        if not formats.is_integer(self.a):
            operands += [str(self.scale_a), str(self.scale_b)]
        if BYTES[self.a] == 2:
            operands += [] if self.registers else [str(int(not self.a_k_major))]
            operands += [str(int(not self.b_k_major))]
        return f"{self.opcode} {', '.join(operands)};\n"


def copy_image() -> str:
    """Copies %s_bytes bytes to the start of `memory`, 16 by each thread in turn, and lets wgmma see them.

    %w8 and %w9 become the descriptors %s_desc_a and %s_desc_b moved to where `memory` is.
    """
    return """
    mov.u64 %w1, memory;
    cvt.u32.u64 %r1, %w1;
    cvt.u32.u64 %r2, %s_bytes;
    shl.b32 %r3, %thread, 4;
    COPY:
    setp.ge.u32 %q, %r3, %r2;
    @%q bra COPIED;
    cvt.u64.u32 %w2, %r3;
    add.u64 %w2, %p_image, %w2;
    ld.global.v4.b32 {%r4, %r5, %r6, %r7}, [%w2];
    add.u32 %r8, %r1, %r3;
    st.shared.v4.b32 [%r8], {%r4, %r5, %r6, %r7};
    shl.b32 %r9, %threads, 4;
    add.u32 %r3, %r3, %r9;
    bra COPY;
    COPIED:
    fence.proxy.async;
    bar.sync 0;
    shr.u64 %w3, %w1, 4;
    add.u64 %w8, %s_desc_a, %w3;
    add.u64 %w9, %s_desc_b, %w3;
"""


def source(form: Form) -> str:
    """An entry of its own for the form."""
    body = copy_image()
    body += ptx_text.load_registers("c", "d", form.d_registers)
    if form.registers:
        body += ptx_text.load_registers("fragments", "a", 4)
    body += "setp.ne.u64 %q, %s_scale, 0;\n"
    body += "wgmma.fence.sync.aligned;\n"
    body += form.text(ptx_text.names("a", 4) if form.registers else "%w8", "%w9", "%q")
    body += "wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;\n"
    body += ptx_text.store_registers("d", "d", form.d_registers)
    return ptx_text.kernel(
        form.name,
        body,
        pointers=["image", "fragments", "c", "d"],
        scalars=["bytes", "desc_a", "desc_b", "scale"],
        registers=[f".reg .b32 %d<{form.d_registers}>;", ".reg .b32 %a<4>;"],
    )


def run(
    form: Form,
    text: str,
    image: np.ndarray,
    descriptors: Sequence[int],
    a: np.ndarray,
    c: np.ndarray,
    *,
    scale_d: bool = True,
    **options: Any,
) -> np.ndarray:
    """D as values. `a` is used where A is in registers: 64 × k values."""
    gpu = emulator.Gpu("H100", **options)
    kernel = gpu.load(text)[form.name]
    d_map, a_map = fragments.wgmma_d(form.n), fragments.wgmma_a(form.a)
    c_packed = gpu.array(fragments.pack(formats.encode(c, form.d).reshape(4, 16, form.n), d_map))
    a_packed = gpu.array(fragments.pack(formats.encode(a, form.a).reshape(4, 16, form.k), a_map))
    out = gpu.empty(c_packed.shape, np.uint32)
    launch = kernel(
        1,
        128,
        gpu.array(image),
        a_packed,
        c_packed,
        out,
        len(image),
        *descriptors,
        int(scale_d),
        shared_bytes=SHARED,
    )
    assert launch.counters.matrix_macs == 64 * form.n * form.k
    bits = formats.encode(np.zeros(1), form.d).dtype.type
    return formats.decode(fragments.unpack(out, d_map, (16, form.n), bits), form.d).reshape(64, form.n)
