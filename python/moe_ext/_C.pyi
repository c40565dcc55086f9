"""The compiled extension. Importing it registers ``torch.ops.moe_ext.*``; its own functions handle no tensors."""

def build_info() -> dict[str, str]:
    """How the extension was built: the torch version under "torch", compiler, flags."""

def cpu_isas_compiled() -> list[str]:
    """Instruction sets with kernels in this build, weakest first: "portable", "avx2", "avx512", "avx512bf16", "amx"."""

def cpu_isas_available() -> list[str]:
    """Those of them that this machine can run."""

def cpu_isa() -> str:
    """The one in use."""

def set_cpu_isa(name: str) -> None:
    """Uses another one of :func:`cpu_isas_available` from now on, in all threads."""

def cpu_reads_side_by_side() -> bool:
    """Whether kernels read several rows of a weight side by side, as suits Intel's cores, or one after the other."""

def set_cpu_reads_side_by_side(side_by_side: bool) -> None:
    """Has kernels read that way from now on, in all threads. No result depends on it."""

def int8_kernels() -> str:
    """Name of the kernels for int8 weights in use: an instruction set, or "avx512vnni"."""

def allow_int8_instructions(allowed: bool) -> None:
    """False: kernels for int8 weights do without VNNI and AMX-int8 from now on, as where the processor lacks them."""

def release_memory() -> int:
    """Gives the memory that is kept for later calls and that nobody holds back to the system: how many bytes."""

def gemm_plan(
    *,
    wgrad: bool,
    capability: int,
    multiprocessors: int,
    shared_memory_per_block: int,
    dtype: str,
    allow_tf32: bool,
    aligned: bool,
    num_rows: int,
    num_experts: int,
    n: int,
    k: int,
    deterministic: bool,
) -> dict[str, str | int]:
    """Which CUDA kernel and tile serve a product: plan, block_m, block_n, block_k, stages, shared_bytes."""
