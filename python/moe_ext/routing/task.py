"""Routing by task: a gate per task, a gate on the task's embedding, or a table."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moe_ext.ops import combine, gather_rows, grouped_gemm, permute
from moe_ext.ops._precision import no_autocast, wide
from moe_ext.ops.types import Routing
from moe_ext.routing._gate import init_weight
from moe_ext.routing._precision import Float32Module
from moe_ext.routing._side_inputs import checked_ids


class TaskLogits(Float32Module):
    """`router_logits[t] = W[task_ids[t]] x[t]`: a gate of its own for every task (Mod-Squad, arXiv:2212.08066).

    Tasks may be mixed in a batch; each token costs one row of one gate.

    Args:
        hidden_size, num_experts, num_tasks: H, E, number of tasks.
        init_std: as in `LinearLogits`; 0 in Mod-Squad.
        device: where to create the parameters. There is no dtype: they are float32.
    """

    side_inputs = ("task_ids",)
    weight: nn.Parameter

    def __init__(
        self,
        hidden_size: int,
        num_experts: int,
        num_tasks: int,
        *,
        init_std: float | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.num_experts = num_experts
        self.num_tasks = num_tasks
        self.init_std = init_std
        self.weight = nn.Parameter(torch.empty(num_tasks, num_experts, hidden_size, device=device, dtype=torch.float32))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """(Re)initialise the weight."""
        init_weight(self.weight, self.hidden_size, self.init_std)

    def forward(self, x: Tensor, *, task_ids: Tensor | None = None) -> Tensor:
        """[T, H] of any float dtype, task_ids [T] int32 or int64 -> [T, E] float32 (float64 for float64 x).

        Logits of a token whose id is no task are 0.

        Raises:
            TypeError: `task_ids` that are no integers. ValueError: no `task_ids`, or not [T].
        """
        task_ids = checked_ids("TaskLogits", "task_ids", task_ids, num_tokens=x.shape[0])
        with no_autocast(x.device.type):
            x = wide(x)
            perm = permute(task_ids[:, None], self.num_tasks)
            rows = grouped_gemm(gather_rows(x, perm), self.weight.to(x.dtype), perm.expert_offsets)
            return combine(rows, x.new_ones(x.shape[0], 1), perm)

    def extra_repr(self) -> str:
        return f"hidden_size={self.hidden_size}, num_experts={self.num_experts}, num_tasks={self.num_tasks}"


class TaskEmbeddingLogits(Float32Module):
    """`router_logits[t] = W e[task_ids[t]]`, so all tokens of a task use the same experts (arXiv:2110.03742).

    Because a task's logits need no tokens, the experts that it will use are known beforehand:
    `router(x, task_ids=...)` on one row per task names them. Noise is drawn per token and would part them.

    With `hidden_size` the gate sees the token as well, `W [x; e]` (task-aware gating, arXiv:2204.07689). The clusters
    of instructions that decide in MoCLE (arXiv:2312.12379) are tasks in this sense.

    Args:
        embedding_dim, num_experts, num_tasks: D, E, number of tasks.
        hidden_size: H of the tokens if the gate shall see them, or None.
        init_std: of W, as in `LinearLogits`. Embeddings start as N(0, 1), as those of `nn.Embedding`.
        device: where to create the parameters. There is no dtype: they are float32.
    """

    side_inputs = ("task_ids",)
    embedding: nn.Parameter
    weight: nn.Parameter

    def __init__(
        self,
        embedding_dim: int,
        num_experts: int,
        num_tasks: int,
        *,
        hidden_size: int | None = None,
        init_std: float | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.embedding_dim = embedding_dim
        self.num_experts = num_experts
        self.num_tasks = num_tasks
        self.hidden_size = hidden_size
        self.init_std = init_std
        float32: dict[str, Any] = {"device": device, "dtype": torch.float32}
        self.embedding = nn.Parameter(torch.empty(num_tasks, embedding_dim, **float32))
        self.weight = nn.Parameter(torch.empty(num_experts, (hidden_size or 0) + embedding_dim, **float32))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """(Re)initialise embeddings and weight."""
        nn.init.normal_(self.embedding)
        init_weight(self.weight, self.weight.shape[1], self.init_std)

    def forward(self, x: Tensor, *, task_ids: Tensor | None = None) -> Tensor:
        """[T, H] of any float dtype, task_ids [T] int32 or int64 -> [T, E] float32 (float64 for float64 x).

        A token whose id is no task has an embedding of zeros.

        Raises:
            TypeError: `task_ids` that are no integers. ValueError: no `task_ids`, or not [T].
        """
        task_ids = checked_ids("TaskEmbeddingLogits", "task_ids", task_ids, num_tokens=x.shape[0])
        with no_autocast(x.device.type):
            x = wide(x)
            weight = self.weight.to(x.dtype)
            split = self.hidden_size or 0
            # A row of logits per task first: tokens then fetch E numbers each, not an embedding.
            per_task = F.linear(self.embedding.to(x.dtype), weight[:, split:])
            known = (task_ids >= 0) & (task_ids < self.num_tasks)
            logits = F.embedding(torch.where(known, task_ids, 0), per_task) * known[:, None]
            return logits + F.linear(x, weight[:, :split]) if split else logits

    def extra_repr(self) -> str:
        return (
            f"embedding_dim={self.embedding_dim}, num_experts={self.num_experts}, num_tasks={self.num_tasks}, "
            f"hidden_size={self.hidden_size}"
        )


class TaskExperts(nn.Module):
    """A selection that reads the experts of a task from a table: nothing is learned, the logits are not looked at.

    The static form of task-level routing (arXiv:2110.03742), and SkillNet's (arXiv:2205.06126) where a task lists
    the skills it activates.

    Args:
        table: [num_tasks, K] integers; -1 where a task has fewer than K experts, after those that it has.
        average: weights of one over the number of experts, else of 1.

    Raises:
        TypeError, ValueError: a `table` that is not an integer tensor of two dimensions.
    """

    table: Tensor

    def __init__(self, table: Tensor, *, average: bool = True) -> None:
        super().__init__()
        if table.is_floating_point() or table.is_complex() or table.dtype == torch.bool:
            raise TypeError(f"TaskExperts: table must hold integers, got {table.dtype}")
        if table.ndim != 2:
            raise ValueError(f"TaskExperts: table must be [num_tasks, top_k], got shape {tuple(table.shape)}")
        self.average = average
        self.register_buffer("table", table.to(torch.int32))

    def forward(self, router_logits: Tensor, *, task_ids: Tensor | None = None, **_: object) -> Routing:
        """[T, E], task_ids [T] -> weights [T, K], ids [T, K]; none for a token whose id is no task.

        Raises:
            TypeError: `task_ids` that are no integers. ValueError: no `task_ids`, or not [T].
        """
        task_ids = checked_ids("TaskExperts", "task_ids", task_ids, num_tokens=router_logits.shape[0])
        known = (task_ids >= 0) & (task_ids < self.table.shape[0])
        topk_ids = self.table.index_select(0, torch.where(known, task_ids, 0))
        topk_ids = torch.where(known[:, None], topk_ids, -1)
        used = topk_ids >= 0
        weights = used.to(wide(router_logits).dtype)
        if self.average:
            weights = weights / weights.sum(dim=1, keepdim=True).clamp(min=1)
        return Routing(weights, topk_ids)
