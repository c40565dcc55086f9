"""The mutual information of tasks and experts: each task should have experts of its own, and all should be used."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from moe_ext.losses._inputs import SCORES, checked_logits, checked_mask, is_counted, probabilities, without
from moe_ext.losses._reductions import per_label, sum_over_group
from moe_ext.ops import _checks
from moe_ext.ops._precision import wide


def mutual_information_loss(joint: Tensor, *, eps: float = 0.0, group: ProcessGroup | None = None) -> Tensor:
    """`-I(task; expert) = -sum_me P(m, e) log(P(m, e) / (P(m) P(e)))`, with P = joint / sum(joint).

    Mod-Squad, arXiv:2212.08066, where it takes the place of a balance loss per task. Between
    -min(log M, log E), every expert knows its task, and 0, tasks and experts are independent. Gradient for the
    normalised joint, up to a constant: `-log(P(m, e) / (P(m) P(e)))`.

    Args:
        joint: [M, E], not negative, any float dtype: sums over tokens of probabilities, see `TaskExpertStatistics`.
        eps: added to both marginals and inside the logarithm, as Mod-Squad's code does with 1e-4.
        group: add up the joint over the ranks of this process group: sums over tokens, not a distribution of each
            rank, or ranks with few tokens count as much as others. Every rank gets the global loss, and the mean over
            ranks of the gradients is its gradient.

    Returns:
        Scalar, float32 (float64 for float64 input); 0 for a joint of zeros.

    Raises:
        TypeError: an argument of the wrong type or dtype. ValueError: wrong shape, or a negative eps.
    """
    function = "losses.mutual_information_loss"
    _checks.is_tensor(function, "joint", joint, _checks.DATA_DTYPES)
    _checks.has_rank(function, "joint", joint, "num_tasks, num_experts")
    _checks.is_number(function, "eps", eps, low=0.0)
    joint = _normalised(sum_over_group(wide(joint), group))
    of_task, of_expert = joint.sum(1, keepdim=True), joint.sum(0, keepdim=True)
    if eps > 0:
        return -(joint * (joint / (of_task + eps) / (of_expert + eps) + eps).log()).sum()
    # 0 log 0 = 0, with a finite gradient.
    tiny = torch.finfo(joint.dtype).tiny
    information = joint.clamp(min=tiny).log() - of_task.clamp(min=tiny).log() - of_expert.clamp(min=tiny).log()
    return -(joint * information).sum()


class TaskExpertStatistics:
    """The joint distribution of tasks and experts, collected over the forward passes of one optimizer step.

    `add` once per forward pass (per layer, an object each), `mutual_information_loss` once per step, then `reset`. The
    sums keep their autograd graph until `reset`. How often a task occurs is decided by who samples the batches. In
    data-parallel training give every method that takes one the same `group`: the tokens of all its ranks are then one
    batch.

    Args:
        num_tasks, num_experts: M, E.
        momentum: None for the joint of this step alone. Otherwise the joint is `momentum * average + (1 - momentum) *
            this step`, with a running average over earlier steps that has no gradient (0.99 in later code of
            Mod-Squad's authors). Needed where a step sees few tasks.

    Raises:
        TypeError, ValueError: sizes below 1, or a momentum outside 0..1.
    """

    def __init__(self, num_tasks: int, num_experts: int, *, momentum: float | None = None) -> None:
        function = "losses.TaskExpertStatistics"
        _checks.is_int(function, "num_tasks", num_tasks, low=1)
        _checks.is_int(function, "num_experts", num_experts, low=1)
        if momentum is not None:
            _checks.is_number(function, "momentum", momentum, low=0.0)
            if momentum > 1:
                raise ValueError(f"moe_ext.{function}: momentum must be at most 1, got {momentum}")
        self.num_tasks = num_tasks
        self.num_experts = num_experts
        self.momentum = momentum
        self._sums: Tensor | None = None
        self._average: Tensor | None = None

    def add(
        self,
        router_logits: Tensor,
        task_ids: Tensor | int,
        *,
        score: str = "softmax",
        token_mask: Tensor | None = None,
    ) -> None:
        """Count a forward pass.

        Args:
            router_logits: [T, E], any float dtype.
            task_ids: the task of all tokens, or [T] int32 or int64; ids outside 0..M-1 count nowhere.
            score: softmax, sigmoid or sqrtsoftplus, the last two divided by their sum.
            token_mask: [T] bool, False for tokens to leave out (padding).

        Raises:
            TypeError: an argument of the wrong type or dtype. ValueError: shapes, or a task, that do not fit.
        """
        function = "losses.TaskExpertStatistics.add"
        logits = checked_logits(function, router_logits)
        num_tokens = logits.shape[0]
        _checks.has_shape(function, "router_logits", logits, "num_tokens, num_experts", (num_tokens, self.num_experts))
        _checks.is_choice(function, "score", score, SCORES)
        token_mask = checked_mask(function, token_mask, num_tokens)
        if isinstance(task_ids, Tensor):
            _checks.is_tensor(function, "task_ids", task_ids, _checks.ID_DTYPES)
            _checks.has_shape(function, "task_ids", task_ids, "num_tokens", (num_tokens,))
        else:
            _checks.is_int(function, "task_ids", task_ids, low=0, high=self.num_tasks - 1, why=" (num_tasks - 1)")
            task_ids = torch.full((num_tokens,), task_ids, device=logits.device)
        counted = is_counted(task_ids, self.num_tasks, token_mask)
        sums = per_label(probabilities(without(logits, counted), score), task_ids, self.num_tasks, counted)
        self._sums = sums if self._sums is None else self._sums + sums

    def joint(self, *, group: ProcessGroup | None = None) -> Tensor:
        """[M, E] with the sum 1 (or all zeros): P(task, expert), differentiable in the logits of this step.

        Args:
            group: of the tokens of all ranks of this process group.

        Raises:
            RuntimeError: nothing was added.
        """
        if self._sums is None:
            raise RuntimeError("moe_ext.losses.TaskExpertStatistics.joint: nothing was added since the last reset()")
        # Before the division: a rank counts by its tokens.
        joint = _normalised(sum_over_group(self._sums, group))
        if self.momentum is None or self._average is None:
            return joint
        return self.momentum * self._average + (1 - self.momentum) * joint

    def mutual_information_loss(self, *, eps: float = 0.0, group: ProcessGroup | None = None) -> Tensor:
        """`mutual_information_loss` of `joint(group=group)`."""
        return mutual_information_loss(self.joint(group=group), eps=eps)

    def reset(self, *, group: ProcessGroup | None = None) -> None:
        """Begin a new step; with momentum, this one enters the running average."""
        if self.momentum is not None and self._sums is not None:
            self._average = self.joint(group=group).detach()
        self._sums = None


def _normalised(x: Tensor) -> Tensor:
    return x / x.sum().clamp(min=torch.finfo(x.dtype).tiny)
