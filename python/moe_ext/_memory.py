"""The memory that the CPU ops keep from one call to the next."""

from __future__ import annotations

from . import _C


def release_memory() -> int:
    """Gives memory that the CPU ops keep for their next call back to the system; returns how many bytes.

    Kept are the memory of weight gradients of 4 MiB and more that have been freed, up to ``MOE_EXT_KEPT_MEMORY`` bytes,
    and one workspace of up to 256 MiB. The system may take the former itself when it runs short. Tensors in use are
    not touched, and the next call works as before, only slower. CUDA memory is PyTorch's own:
    :func:`torch.cuda.empty_cache`.
    """
    return _C.release_memory()
