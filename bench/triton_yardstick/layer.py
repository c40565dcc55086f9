"""The yardstick's layer: index arrays made on the host, then one launch after another on the virtual GPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bench.triton_yardstick.compile import Arguments, launch
from bench.triton_yardstick.configs import rows_config, wgrad_config

if TYPE_CHECKING:
    import emulator


@dataclass(frozen=True)
class Routing:
    """The sort by expert, as `permute` gives it, and its rows padded to whole tiles of block_m."""

    top_k: int
    block_m: int
    offsets: Tensor  # [E+1]
    row_to_slot: Tensor  # [R]
    slot_to_row: Tensor  # [R]
    padded_slots: Tensor  # [P], R where there is no row
    padded_rows: Tensor  # [P], R where there is no row
    block_experts: Tensor  # [P / block_m]

    @property
    def num_rows(self) -> int:
        """R = T*K."""
        return self.row_to_slot.numel()

    @classmethod
    def of(cls, topk_ids: Tensor, num_experts: int, block_m: int) -> Routing:
        """Sorts ids [T,K], all in 0..num_experts-1."""
        flat = topk_ids.flatten().long()
        num_rows = flat.numel()
        row_to_slot = flat.argsort(stable=True)
        slot_to_row = torch.empty_like(row_to_slot)
        slot_to_row[row_to_slot] = torch.arange(num_rows)
        counts = torch.bincount(flat, minlength=num_experts)
        offsets = torch.cat((torch.zeros(1, dtype=torch.long), counts.cumsum(0)))
        blocks = -(-counts // block_m)
        place = torch.arange(int(blocks.sum()) * block_m)
        block_experts = torch.repeat_interleave(torch.arange(num_experts), blocks)
        first_place = (blocks.cumsum(0) - blocks) * block_m
        expert = block_experts.repeat_interleave(block_m)
        rank = place - first_place[expert]
        rows = torch.where(rank < counts[expert], offsets[expert] + rank, num_rows)
        slots = torch.cat((row_to_slot, torch.tensor([num_rows])))[rows]
        arrays = (offsets, row_to_slot, slot_to_row, slots, rows, block_experts)
        return cls(topk_ids.size(1), block_m, *(array.int() for array in arrays))


class Layer:
    """w_gate_up [E,2I,H], w_down [E,H,I]. Every method is one job of the layer: the same one that `bench.virtual`
    measures of moe_ext. Call inside `with gpu, gpu.torch_memory()`."""

    def __init__(self, gpu: emulator.Gpu, w_gate_up: Tensor, w_down: Tensor) -> None:
        self._gpu, self._w_gate_up, self._w_down = gpu, w_gate_up, w_down

    def route(self, logits: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
        """-> topk_weights, topk_ids [T,K]."""
        num_tokens, num_experts = logits.shape
        weights = torch.empty(num_tokens, top_k)
        ids = torch.empty(num_tokens, top_k, dtype=torch.int32)
        block = max(1, 2048 // num_experts)
        arguments: Arguments = {"logits": logits, "weights": weights, "ids": ids, "num_tokens": num_tokens}
        constants = {"E": num_experts, "K": top_k, "BLOCK": block}
        launch(self._gpu, "route", -(-num_tokens // block), arguments, constants)
        return weights, ids

    def gate_up(self, x: Tensor, routing: Routing, sorted_rows: bool) -> tuple[Tensor, Tensor]:
        """-> z [R,2I], act [R,I], in the order of slots, or sorted by expert as a backward pass wants them."""
        to = routing.padded_rows if sorted_rows else routing.padded_slots
        z = self._gemm(x, self._w_gate_up, routing, routing.padded_slots, to, a_divisor=routing.top_k)
        act = z.new_empty(z.size(0), z.size(1) // 2)
        self._elementwise("silu_and_mul", act.size(0), act.size(1), {"z": z, "act": act, "I": act.size(1)})
        return z, act

    def down(self, act: Tensor, routing: Routing, weights: Tensor | None, sorted_rows: bool) -> Tensor:
        """-> rows [R,H] in the order of slots, multiplied by weights [T,K] unless those are None."""
        source = routing.padded_rows if sorted_rows else routing.padded_slots
        return self._gemm(act, self._w_down, routing, source, routing.padded_slots, weights=weights)

    def combine(self, slot_rows: Tensor, routing: Routing, weights: Tensor | None) -> Tensor:
        """-> y [T,H], the (weighted) sum over k."""
        num_tokens, hidden = slot_rows.size(0) // routing.top_k, slot_rows.size(1)
        y = slot_rows.new_empty(num_tokens, hidden)
        arguments: Arguments = {"slot_rows": slot_rows, "weights": weights, "y": y, "H": hidden}
        constants = {"K": routing.top_k, "WEIGHTED": int(weights is not None)}
        self._elementwise("sum_over_k", num_tokens, hidden, arguments, constants)
        return y

    def combine_backward(
        self, grad_y: Tensor, slot_rows: Tensor, weights: Tensor, routing: Routing
    ) -> tuple[Tensor, Tensor]:
        """-> grad_rows [R,H] sorted by expert, grad_weights [T,K]."""
        grad_rows, grad_weights = torch.empty_like(slot_rows), torch.empty_like(weights)
        arguments: Arguments = {
            "grad_y": grad_y,
            "slot_rows": slot_rows,
            "weights": weights,
            "slot_to_row": routing.slot_to_row,
            "grad_rows": grad_rows,
            "grad_weights": grad_weights,
            "H": slot_rows.size(1),
        }
        constants = {"K": routing.top_k, "BLOCK": 1024}
        launch(self._gpu, "combine_backward", routing.num_rows, arguments, constants, num_warps=4)
        return grad_rows, grad_weights

    def activation_backward(self, grad_rows: Tensor, z: Tensor, routing: Routing) -> Tensor:
        """-> grad_z [R,2I]; everything sorted by expert."""
        rows = routing.padded_rows
        grad_act = self._gemm(grad_rows, self._w_down.transpose(1, 2), routing, rows, rows)
        grad_z = torch.empty_like(z)
        arguments: Arguments = {"z": z, "grad_act": grad_act, "grad_z": grad_z, "I": grad_act.size(1)}
        self._elementwise("silu_and_mul_backward", z.size(0), grad_act.size(1), arguments)
        return grad_z

    def gather(self, x: Tensor, routing: Routing) -> Tensor:
        """-> rows [R,H] of x, sorted by expert."""
        rows = x.new_empty(routing.num_rows, x.size(1))
        arguments: Arguments = {"x": x, "row_to_slot": routing.row_to_slot, "rows": rows, "H": x.size(1)}
        self._elementwise("gather_rows", routing.num_rows, x.size(1), arguments, {"K": routing.top_k})
        return rows

    def wgrad(self, left: Tensor, right: Tensor, routing: Routing) -> Tensor:
        """-> [E,N,K] of left [R,N] and right [R,K], both sorted by expert."""
        num_experts, (n, k) = routing.offsets.numel() - 1, (left.size(1), right.size(1))
        out = left.new_empty(num_experts, n, k)
        config = wgrad_config(k)
        grid = (-(-n // config.block_m) * -(-k // config.block_n), num_experts)
        arguments: Arguments = {"left": left, "right": right, "out": out, "offsets": routing.offsets, "N": n, "K": k}
        constants = {"BLOCK_N": config.block_m, "BLOCK_K": config.block_n, "BLOCK_R": config.block_k}
        launch(
            self._gpu,
            "grouped_wgrad",
            grid,
            arguments,
            constants,
            num_warps=config.num_warps,
            num_stages=config.num_stages,
        )
        return out

    def grad_rows_of_x(self, grad_z: Tensor, routing: Routing) -> Tensor:
        """-> [R,H] in the order of slots; its sum over k is the gradient of x."""
        w = self._w_gate_up.transpose(1, 2)
        return self._gemm(grad_z, w, routing, routing.padded_rows, routing.padded_slots)

    def _gemm(
        self,
        a: Tensor,
        weight: Tensor,
        routing: Routing,
        a_rows: Tensor,
        c_rows: Tensor,
        *,
        a_divisor: int = 1,
        weights: Tensor | None = None,
    ) -> Tensor:
        """Weight is [E,N,K] through any strides with one of N and K contiguous."""
        _, n, k = weight.shape
        out = a.new_empty(routing.num_rows, n)
        config = rows_config(n, routing.block_m)
        arguments: Arguments = {
            "a": a,
            "b": weight,
            "c": out,
            "row_weights": weights,
            "a_rows": a_rows,
            "c_rows": c_rows,
            "block_experts": routing.block_experts,
            "N": n,
            "K": k,
            "b_expert": weight.stride(0),
            "b_n": weight.stride(1),
            "b_k": weight.stride(2),
            "num_rows": routing.num_rows,
        }
        constants = {
            "A_DIVISOR": a_divisor,
            "B_K_MAJOR": int(weight.stride(2) == 1),
            "WEIGHTED": int(weights is not None),
            "EVEN_K": int(k % config.block_k == 0),
            "BLOCK_M": config.block_m,
            "BLOCK_N": config.block_n,
            "BLOCK_K": config.block_k,
        }
        grid = routing.block_experts.numel() * -(-n // config.block_n)
        launch(
            self._gpu,
            "grouped_gemm",
            grid,
            arguments,
            constants,
            num_warps=config.num_warps,
            num_stages=config.num_stages,
        )
        return out

    def _elementwise(
        self,
        kernel: str,
        num_rows: int,
        width: int,
        arguments: Arguments,
        constants: dict[str, int] | None = None,
    ) -> None:
        # Eight values a thread: 16 bytes of 16-bit data.
        block = min(1024, max(256, 1 << (width - 1).bit_length()))
        grid = (num_rows, -(-width // block))
        launch(self._gpu, kernel, grid, arguments, {**(constants or {}), "BLOCK": block}, num_warps=block // 256)
