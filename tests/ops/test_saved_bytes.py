"""What fused_experts, soft_dispatch and soft_combine keep for backward, to the byte."""

import pytest
import torch
from torch import Tensor

import moe_ext
from tests.support.backends import Backend


def kept_bytes(weights: list[Tensor], run: object) -> int:
    """Bytes of all storages that autograd saves while ``run()`` runs, except those of the weights."""
    own = {tensor.untyped_storage().data_ptr() for tensor in weights}
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = run()  # type: ignore[operator]
    total = sum(size for pointer, size in storages.items() if pointer not in own)
    assert output.requires_grad
    return total


@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("num_tokens", "hidden_size", "intermediate_size", "num_experts", "top_k"),
    [(64, 48, 32, 8, 2), (33, 16, 24, 5, 3), (128, 64, 16, 64, 8)],
)
def test_kept_bytes(
    backend: Backend, num_tokens: int, hidden_size: int, intermediate_size: int, num_experts: int, top_k: int,
    dtype: torch.dtype, bias: bool,
) -> None:  # fmt: skip
    def leaf(*sizes: int) -> Tensor:
        return backend.put(torch.randn(sizes).to(dtype).requires_grad_())

    x = leaf(num_tokens, hidden_size)
    w_gate_up = leaf(num_experts, 2 * intermediate_size, hidden_size)
    w_down = leaf(num_experts, hidden_size, intermediate_size)
    weights = [w_gate_up, w_down]
    biases = {}
    if bias:
        biases = {
            "b_gate_up": leaf(num_experts, 2 * intermediate_size),
            "b_down": leaf(num_experts, hidden_size),
        }
        weights += biases.values()
    topk_weights = backend.put(torch.rand(num_tokens, top_k, requires_grad=True))
    topk_ids = backend.put(torch.randint(-1, num_experts + 1, (num_tokens, top_k), dtype=torch.int32))

    # topk_weights and slot_to_row are 4 bytes a slot each; expert_offsets does not grow with the tokens.
    index_bytes = 8 * top_k * num_tokens + 4 * (num_experts + 1)
    x_bytes = dtype.itemsize * hidden_size * num_tokens
    preact_bytes = dtype.itemsize * 2 * top_k * intermediate_size * num_tokens
    for save, wanted in (("preact", x_bytes + preact_bytes + index_bytes), ("none", x_bytes + index_bytes)):
        kept = kept_bytes(
            weights,
            lambda save=save: moe_ext.fused_experts(x, w_gate_up, w_down, topk_weights, topk_ids, save=save, **biases),
        )
        assert kept == wanted, save


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_kept_bytes_of_soft_moe(backend: Backend, dtype: torch.dtype) -> None:
    """The arguments, the result, and two numbers for each row of it; nothing of [B, m, s] but the logits."""
    batch, m, s, d = 2, 40, 24, 16
    logits_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    logits = backend.put(torch.randn(batch, m, s, dtype=logits_dtype).requires_grad_())
    mask = backend.put(torch.rand(batch, m) > 0.5)
    for op, rows, results in ((moe_ext.soft_dispatch, m, s), (moe_ext.soft_combine, s, m)):
        data = backend.put(torch.randn(batch, rows, d).to(dtype).requires_grad_())
        kept = kept_bytes([data, logits, mask], lambda op=op, data=data: op(data, logits, mask))
        assert kept == batch * results * (d * dtype.itemsize + 2 * logits_dtype.itemsize)
